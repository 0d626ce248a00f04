"""Data folder of a voter's etcd: which host's data it has, and whether etcd may be started with it.

etcd takes any data that it finds, and makes an empty folder if it finds none. Both can break a cluster: a member that
lost its data votes as if it had seen nothing, a copied folder makes two members with one id, and etcd of another minor
version writes a format that the others cannot read. So the folder has a note of ours, and whoever starts etcd asks here
first. systemd's unit does so by this module's command line, whose exit code 1 keeps etcd from being started.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from linkspan.core.errors import Conflict, LinkspanError, NotFound, Unavailable
from linkspan.kernel.io.durable_files import write
from linkspan.kernel.io.exchange import sync

NOTE = "linkspan.json"
"""Our note, in the folder; etcd ignores it."""
LARGEST = 4 << 10
"""Largest note that is read, in bytes."""
MEMBER = "member"
"""etcd's own folder in it, which exists once etcd has started."""
BEFORE = ".before"
"""What the name of the folder gets when its data are not used any more: the last one is kept.

The data that a restore replaces get it with the time, and are never deleted."""
_VERSION = re.compile(r"^etcd Version: (\d+\.\d+)\.\d+", re.MULTILINE)

Owner = tuple[int, int]


class Note(msgspec.Struct, frozen=True):
    """The owner of a folder's data: the host's id, etcd's minor version ("3.5"), and etcd's id of a member that joined.

    ``begun``: etcd has been seen with data in it, so the folder is never empty again.
    """

    host: str
    minor: str
    member: str = ""
    begun: bool = False


def minor_of(program: str) -> str:
    """Return the minor version of an etcd, such as "3.5". Raises Unavailable."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{program}: its version cannot be asked: {error}", "install etcd again") from error
    if (match := _VERSION.search(done.stdout)) is None:
        raise Unavailable(f"{program}: it does not tell its version", "install etcd again")
    return match[1]


def note(folder: Path) -> Note | None:
    """Return the note of a data folder, None if it has none. Raises Unavailable if it is damaged.

    Root asks, in a folder of etcd's user, who may put a link or a pipe there.
    """
    if folder.is_symlink():
        raise Unavailable(f"{folder} is a link, and the data of etcd must be in a folder there", "mount it instead")
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(folder / NOTE, flags), "rb") as file:
            return msgspec.json.decode(file.read(LARGEST) or b"", type=Note)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unavailable(f"{folder / NOTE}, which says whose data this is, cannot be read", _AGAIN) from error


_AGAIN = "let the cluster make this voter again: on another voter, linkspan cluster demote and promote this host"


def prepare(folder: Path, fresh: Note, owner: Owner) -> None:
    """Make an empty data folder for a first start; one that has another member's data, or an earlier one's, is renamed.

    Raises Unavailable.
    """
    try:
        known = note(folder)
    except LinkspanError:
        known = None
    if known is not None and (known.host, known.member, known.minor) == (fresh.host, fresh.member, fresh.minor):
        return
    put_aside(folder)
    try:
        folder.mkdir(mode=0o700, parents=True)
        write(folder / NOTE, msgspec.json.encode(fresh), 0o600, owner)
        os.chown(folder, *owner, follow_symlinks=False)
    except OSError as error:
        raise Unavailable(f"{folder}: {(error.strerror or '').lower()}", "etcd's data would be there") from error


def put_aside(folder: Path) -> None:
    """Rename a data folder that is not used any more; the one before that is deleted. Raises Unavailable.

    One that etcd never used is deleted instead, so that the data of before stay.
    """
    before = folder.with_name(f"{folder.name}{BEFORE}")
    try:
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists() and not (folder / MEMBER).exists():
            shutil.rmtree(folder)
        elif folder.exists():
            shutil.rmtree(before, ignore_errors=True)
            folder.rename(before)
    except OSError as error:
        raise Unavailable(f"{folder} cannot be renamed: {(error.strerror or '').lower()}", "move it away") from error


def keep_aside(data: Path, folder: Path) -> Path:
    """Rename data that a restore has replaced in a data folder, to a name beside that; return it. Raises OSError."""
    moment = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    names = (f"{folder.name}{BEFORE}-{moment}{end}" for end in ("", *(f"-{number}" for number in range(2, 100))))
    kept = next(path for name in names if not (path := folder.with_name(name)).exists())
    data.rename(kept)
    sync(kept.parent)
    return kept


def check(folder: Path, host: str, program: str, owner: Owner) -> None:
    """Return if etcd may be started with a data folder. Raises Conflict, NotFound or Unavailable with the reason.

    Data without a note is of an earlier version of linkspan, or an operator removed the note: it is taken as it is.
    """
    known, there, minor = note(folder), (folder / MEMBER).is_dir(), minor_of(program)
    if known is None:
        if not there:
            raise NotFound(f"{folder}: the data of this voter is gone, and etcd must not begin without it", _AGAIN)
        known = Note(host, minor)
    if known.host != host:
        raise Conflict(f"{folder} is a copy of the data of host {known.host}, and this is host {host}", _AGAIN)
    if known.minor != minor:
        raise Conflict(
            f"{folder} has data of etcd {known.minor}, and {program} is etcd {minor}",
            f"install etcd {known.minor} again; to upgrade on purpose, one voter after the other: rm {folder / NOTE}",
        )
    if known.begun and not there:
        raise NotFound(f"{folder}: the data of this voter is gone, and etcd must not begin without it", _AGAIN)
    if there and not known.begun:
        changed = msgspec.structs.replace(known, begun=True)
        try:
            write(folder / NOTE, msgspec.json.encode(changed), 0o600, owner)
        except OSError as error:
            raise Unavailable(f"{folder / NOTE}: {(error.strerror or '').lower()}", "etcd's disk is full?") from error


def main() -> None:
    """Check a data folder: its path, the host's id, etcd's program. For systemd's unit."""
    folder, host, program = sys.argv[1:]
    there = Path(folder)
    try:
        found = there.parent.stat()
        check(there, host, program, (found.st_uid, found.st_gid))
    except LinkspanError as error:
        sys.stderr.write(f"{error.told}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
