"""Queue of removals that the CNI plugin wrote while the agent was down.

Each is one file. The plugin writes it whole under another name and renames it. The agent reads the folder
before it is ready, and whenever a file arrives, and removes a file when its removal is journalled. This
closes two races. The plugin tries the agent once more after its file exists (an agent that started in between
may have read the folder before). And an entry counts only for an endpoint that was attached before it (the
runtime may have attached the same id and interface again since).
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import msgspec

from linkspan.core.errors import Invalid, LinkspanError, Unavailable
from linkspan.core.model import checked_ifname, checked_name

log = logging.getLogger("linkspan.runtimes.cni_queue")

LARGEST = 4096
"""Largest size of an entry in bytes; the plugin's longest has about 600."""
STALE = 600.0
"""Age in seconds at which a half-written file belongs to a dead plugin: a plugin gives up after 120 s."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A queued removal. ``boottime_ns`` is CLOCK_BOOTTIME, which counts from the boot with this id."""

    path: Path = Path()
    container_id: str
    ifname: str
    network: str
    boot_id: str
    boottime_ns: int

    def applies(self, attached_boot_id: str, attached_ns: int, boot_id: str) -> bool:
        """Return whether an endpoint attached at that time is meant by this removal; ``boot_id`` is today's.

        Times of different boots do not compare: then an endpoint of this boot is the newer one, and an
        endpoint of an earlier boot has lost its namespace anyway.
        """
        if attached_boot_id == self.boot_id:
            return attached_ns < self.boottime_ns
        return attached_boot_id != boot_id

    def done(self) -> None:
        """Remove the file; the plugin may have done so, if it reached the agent after all."""
        self.path.unlink(missing_ok=True)


def entries(folder: Path) -> list[Entry]:
    """Return the queued removals, the oldest first. Rename invalid files to ``NAME.bad`` and log them.

    Raises Unavailable if the folder cannot be read; a missing folder is empty.
    """
    found = []
    try:
        names = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unavailable(
            f"read the queue {folder}: {error.strerror}", "is it a folder that root owns?"
        ) from error
    for path in names:
        if path.suffix == ".json":
            try:
                found.append(entry(path))
            except FileNotFoundError:
                continue  # the plugin reached the agent after all
            except LinkspanError as error:
                _set_aside(path, error.message)
        elif path.suffix == ".tmp":
            _sweep(path)
    return sorted(found, key=lambda one: (one.boot_id, one.boottime_ns))


def entry(path: Path) -> Entry:
    """Read one file. Raises Invalid with its name, or FileNotFoundError."""
    try:
        if path.is_symlink() or not path.is_file():
            path.lstat()
            raise Invalid(f"queued removal {path} is no regular file", "only the CNI plugin writes here")
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Invalid(f"queued removal {path}: {error.strerror}") from error
    if len(text) > LARGEST:
        raise Invalid(f"queued removal {path} has more than {LARGEST} bytes")
    try:
        fields = msgspec.json.decode(text, type=dict[str, str | int])
        parsed = msgspec.convert(
            {**fields, "path": str(path)}, Entry, dec_hook=lambda kind, value: kind(value)
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"queued removal {path}: {error}") from error
    try:
        checked_name(parsed.container_id, "container id")
        checked_name(parsed.network, "network")
        checked_ifname(parsed.ifname)
    except Invalid as error:
        raise error.within(f"queued removal {path}") from error
    return parsed


def _set_aside(path: Path, why: str) -> None:
    try:
        path.replace(path.with_name(f"{path.name}.bad"))
    except OSError as error:
        why = f"{why}; it cannot be renamed: {error.strerror}"
    log.warning("an invalid queued removal was renamed: %s", why, extra={"path": str(path)})


def _sweep(path: Path) -> None:
    """Remove the file of a plugin that was killed while it wrote."""
    try:
        if time.time() - path.lstat().st_mtime > STALE:
            path.unlink()
    except OSError as error:
        log.debug("%s stays: %s", path, error)
