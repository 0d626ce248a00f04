"""Private files: files and folders that only root may read, or only root may change. All others are refused."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from linkspan.core.errors import Denied, KernelError, of_errno

LARGEST = 1 << 20
"""Largest file that is read, in bytes."""
_ACL = "system.posix_acl_access"
_UID_MAP, _ALL = Path("/proc/self/uid_map"), (0, 0, (1 << 32) - 1)
"""Which users of the machine this process's users are, and the only range outside of user namespaces."""
_LOCAL = "staff"
"""Debian's group for those who may write /usr/local (Debian Policy 9.1.2). By default nobody is in it."""
_PACKAGES = ("site-packages", "dist-packages")


def alone(source: str) -> bytes:
    """Return the content of a secret's file. Raises Denied with its name if others may read it, or if it is missing."""
    hint = f"chown root: {source}; chmod 600 {source}"
    denied = Denied(f"{source} must belong to root, and nobody else may read it", hint)
    content = _read(source, f"read the secret in {source}", os.O_NOFOLLOW, 0o077, denied)
    return content[: 1 << 14].removesuffix(b"\n")


def trusted(source: str, what: str) -> bytes:
    """Return the content of a file of trusted keys. Raises Denied with its name if others may write it."""
    denied = Denied(
        f"{source} ({what}) can be changed by others than root, and says whom this host trusts",
        f"chown root {source}; chmod go-w {source}",
    )
    return _read(source, f"read {source} ({what})", 0, 0o022, denied)


def _read(source: str, doing: str, flags: int, others: int, denied: Denied) -> bytes:
    """Return a file's content. Raises ``denied`` if it is not root's, or has one of these modes for others."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & others:
                raise denied
            return file.read(LARGEST)
    except FileNotFoundError as error:
        raise KernelError(f"{doing}: no such file", errno.ENOENT, "write it, or set another") from error
    except OSError as error:
        raise of_errno(error.errno or 0, doing) from error


def machines_root() -> bool:
    """Return whether this is the machine's root. A user namespace's root sees that one's files as somebody else's."""
    return os.geteuid() == 0 and users() == [_ALL]


def users() -> list[tuple[int, ...]]:
    """Return the users of this user namespace: for each range the first, whom the one above calls so, and their number.

    A kernel without user namespaces (CONFIG_USER_NS) has all of them.
    """
    try:
        lines = _UID_MAP.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return [_ALL]
    return [tuple(map(int, line.split())) for line in lines]


def apart(folder: Path) -> None:
    """Reserve a folder for root, also if it exists. Raises LinkspanError with its name."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid():
                os.fchown(fd, os.geteuid(), os.getegid())
            if stat.S_IMODE(found.st_mode) != 0o700:
                os.fchmod(fd, 0o700)
        finally:
            os.close(fd)
    except OSError as error:
        raise of_errno(error.errno or 0, f"reserve {folder} for root") from error


def writers(paths: Iterable[Path]) -> Iterator[str]:
    """Yield a sentence for each user besides root who may write these paths, their contents, or a parent folder.

    Packages in a folder of their own below another (``site-packages``) are checked if they are among the
    paths.
    """
    seen: set[Path] = set()
    for path in map(Path.absolute, paths):
        yield from _way(path, seen)
        folders = [path] if path.is_dir() else []
        while folders:
            for entry in os.scandir(folders.pop()):
                place, found = Path(entry.path), entry.stat(follow_symlinks=False)
                if place in seen or place.name in _PACKAGES:
                    continue
                seen.add(place)
                yield from _place(place, found, seen)
                if place.is_dir():  # or a link to a folder
                    folders.append(place)


def _way(path: Path, seen: set[Path]) -> Iterator[str]:
    """Yield who may write a path, or one of the folders and links on it; check each once."""
    for place in (*reversed(path.parents), path):
        if place not in seen:
            seen.add(place)
            with contextlib.suppress(FileNotFoundError):
                yield from _place(place, place.lstat(), seen)


def _place(place: Path, found: os.stat_result, seen: set[Path]) -> Iterator[str]:
    """Yield who may write one file or folder, or the target of a link."""
    if why := _who(place, found):
        yield f"{place} {why}"
    if stat.S_ISLNK(found.st_mode):
        # From where the link really is: behind another link ``..`` leads elsewhere.
        yield from _way(Path(os.path.realpath(place.parent)) / place.readlink(), seen)


def _who(place: Path, found: os.stat_result) -> str:
    """Return who besides root may change a file or folder, "" if nobody."""
    if found.st_uid:
        return f"is owned by {_name(found.st_uid)}"
    if stat.S_ISLNK(found.st_mode) or (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        return ""  # sticky: nobody can change another user's files in such a folder
    if found.st_mode & stat.S_IWOTH:
        return "may be written by everybody"
    if found.st_mode & stat.S_IWGRP and (not _is_roots_alone(found.st_gid) or _ACL in os.listxattr(place)):
        return f"may be written by group {_group(found.st_gid)}"
    return ""


def _is_roots_alone(gid: int) -> bool:
    """Return whether no user besides root is in a group: root's own, or Debian's for /usr/local while it is empty.

    Other groups may have no users either, but programs that get them, as those of mail do.
    """
    if not gid or _group(gid) != _LOCAL:
        return not gid
    return not grp.getgrgid(gid).gr_mem and all(user.pw_gid != gid for user in pwd.getpwall())


def _name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
