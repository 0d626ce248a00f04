"""etcd's own tools: the restore of a snapshot into a data folder, and the reset of root's password."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import msgspec

from linkspan.cluster.founding.etcd_service import tool
from linkspan.core.errors import NotFound, Unavailable

BUMP = 1_000_000_000
"""How far a restore raises the revision: beyond all that the lost etcd may have had. etcd counts to 9e18."""
SECONDS = 600.0
"""Seconds for a restore: etcd writes the database again, 1 GB in 10 to 20 s on a plain disk."""
_INSTALL = "apt install etcd-client; linkspan's package brings it"


class Restorer:
    """Restores snapshots into data folders, with what this host has for that."""

    def __init__(self) -> None:
        """Find etcdutl, or an etcdctl that restores, as that of etcd 3.4 does. Raises NotFound."""
        self.words: tuple[str, ...] = ()
        for name in ("etcdutl", "etcdctl"):
            if (path := tool(name)) and "--data-dir" in (helped := _help(path)):
                self.words = (path, "snapshot", "restore")
                self.bumps = "--bump-revision" in helped
                return
        raise NotFound("neither etcdutl nor etcdctl is installed, which restore a snapshot", _INSTALL)

    @property
    def bump(self) -> int:
        """Return by how much it raises the revision: 0 if it cannot, then hosts find the difference themselves."""
        return BUMP if self.bumps else 0

    def restore(self, file: Path, folder: Path, name: str, peers: str, token: str, *, checked: bool = True) -> None:
        """Make a data folder of a cluster with one member; ``peers`` is its URL, and its id follows from ``token``.

        ``checked``: the file has its checksum; a database that was copied from a data folder has none. Raises
        Unavailable with etcd's reason; slow, so it belongs into a thread.
        """
        options = ["--data-dir", str(folder), "--name", name, "--initial-cluster", f"{name}={peers}"]
        options += ["--initial-cluster-token", token, "--initial-advertise-peer-urls", peers]
        options += [] if checked else ["--skip-hash-check"]
        options += ["--bump-revision", str(self.bump), "--mark-compacted"] if self.bump else []
        _run([*self.words, str(file), *options], f"restore {file}")


def reset_root(endpoint: str, authority: Path, certificate: Path, key: Path, password: str) -> None:
    """Give etcd's root a password, by a certificate whose common name is root: etcd takes its word for the user.

    Raises NotFound if etcdctl is missing, and Unavailable with etcd's reason; it blocks, so it belongs into a thread.
    """
    if not (etcdctl := tool("etcdctl")):
        raise NotFound("etcdctl is not installed, which gives etcd's root another password", _INSTALL)
    trust = ["--cacert", str(authority), "--cert", str(certificate), "--key", str(key)]
    words = [etcdctl, "--endpoints", f"https://{endpoint}", *trust, "user", "passwd", "root", "--interactive=false"]
    _run(words, "give etcd's root another password", password)


def _help(path: str) -> str:
    """Return the help of a tool's restore: an etcdctl of 3.6 has none."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [path, "snapshot", "restore", "--help"],
            capture_output=True, text=True, timeout=10, check=False, env=_environment(),
        )  # fmt: skip
        return done.stdout
    return ""


class _Told(msgspec.Struct):
    msg: str = ""
    error: str = ""


def _run(words: list[str], what: str, text: str = "") -> None:
    try:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, timeout=SECONDS, check=False, env=_environment()
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{what}: {words[0]}: {error}", _INSTALL) from error
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        why = _words(lines[-1]) if lines else f"it ended with {done.returncode}"
        hint = f"{words[0]} says so; has the disk space, and is its version that of the etcd?"
        raise Unavailable(f"{what}: {why}", hint)


def _words(line: str) -> str:
    """Return a line of etcd's log as text."""
    with contextlib.suppress(msgspec.DecodeError):
        told = msgspec.json.decode(line, type=_Told)
        return ": ".join(filter(None, (told.msg, told.error)))
    return line.removeprefix("Error: ").strip()


def _environment() -> dict[str, str]:
    """Return the environment without etcd's settings of the caller; etcdctl of 3.4 asks for the API's version."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD")} | {"ETCDCTL_API": "3"}
