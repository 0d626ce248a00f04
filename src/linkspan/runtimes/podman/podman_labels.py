"""Labels of Podman's containers, from Podman's own database: it does not tell them to network drivers.

Podman writes a container's configuration into its database (SQLite, since Podman 4.8) when it creates the
container, and keeps the database open. So the Podman that sets up a network has it among its open files, whatever
its storage folder is. The agent opens the same file read only. Podman has no transaction under way while it waits
for a network plugin.

What was rejected: `podman inspect` and `podman ps` wait for the container's lock, which the calling Podman has
until the plugin has answered. Podman writes the container's config.json after the network is set up, and its
storage's containers.json has no labels. The command line of the calling Podman lacks those of an image and of
`--label-file`, and `podman start` has none.

BoltDB, which Podman had before and keeps where it found it, is not read. Podman opens it for single accesses, so
no open file leads to it, and Python has no reader for it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from linkspan.core.errors import Unavailable
from linkspan.kernel.io.private_files import writers
from linkspan.kernel.io.process_stat import parent

NAME = "db.sql"
ANCESTORS = 4
"""How many of the plugin's ancestors may be Podman. It is the second, behind netavark; either may be wrapped."""
PATIENCE = 5.0
"""Seconds to wait while Podmans write. Each write takes milliseconds, and Podman waits up to 100 s for others."""
LARGEST = 8 << 20
"""Bytes of a container's configuration, at most: one with a thousand mounts takes about 1 MiB."""
_QUERY = """
    SELECT CAST(pod.JSON AS BLOB), CAST(container.JSON AS BLOB)
    FROM ContainerConfig AS container LEFT JOIN PodConfig AS pod ON pod.ID = container.PodID
    WHERE container.ID = ?
"""


class _Labelled(msgspec.Struct, frozen=True):
    """The part of the configuration of a container or a pod."""

    labels: dict[str, str] | None = None


def labels(plugin: int, container: str) -> dict[str, str]:
    """Return the labels of a container and of its pod, given the process that netavark executed for it.

    The container's own label comes before its pod's with the same key. Raises Unavailable if they cannot be read.
    """
    path = _database(plugin)
    found: dict[str, str] = {}
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as database:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST)
            row = database.execute(_QUERY, (container,)).fetchone()
        if row is None:
            raise Unavailable(f"container {container[:12]} is not in {path}")
        for text in filter(None, row):
            found |= msgspec.json.decode(text, type=_Labelled).labels or {}
    except (sqlite3.Error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable(f"container {container[:12]} cannot be read in {path}: {error}") from error
    return found


def _database(plugin: int) -> Path:
    """Return the path of the database that the nearest ancestor of a process has open.

    Raises Unavailable if there is none, if the path leads elsewhere here, or if others than root may change it.
    """
    for process in _ancestors(plugin):
        with contextlib.suppress(OSError):  # it has ended
            for opened in Path(f"/proc/{process}/fd").iterdir():
                path = _target(opened)
                if path.name == NAME:
                    return _checked(opened, path)
    raise Unavailable(
        f"the calling Podman has no {NAME} open, as if its database were BoltDB "
        "(podman info --format '{{.Host.DatabaseBackend}}' shows it)"
    )


def _ancestors(process: int) -> Iterator[int]:
    """Yield a process's parent, that one's parent and so on, as far as Podman may be."""
    for _ in range(ANCESTORS):
        try:
            process = parent(process)
        except OSError:  # it has ended
            return
        yield process


def _target(opened: Path) -> Path:
    """Return what an open file's link leads to, "." if the file was closed meanwhile."""
    try:
        return opened.readlink()
    except OSError:
        return Path()


def _checked(opened: Path, path: Path) -> Path:
    """Return the path of an open file if it leads to that file, and only root may change it. Raises Unavailable."""
    if not path.exists() or not opened.samefile(path):
        raise Unavailable(f"Podman's {path} is another file for the agent, which sees other mounts")
    if why := next(writers([path]), ""):
        raise Unavailable(f"Podman's {path} is not trusted: {why}")
    return path
