"""Private files: files and folders that only root may read, or only root may change. All others are refused."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import re
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
_SOURCES = Path("/etc/nsswitch.conf")
_LISTED = ("files", "systemd")
"""Services of the C library that list all of their users."""
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
    walk = _Walk()
    for path in map(Path.absolute, paths):
        yield from walk.way(path)
        folders = [path] if path.is_dir() else []
        while folders:
            for entry in os.scandir(folders.pop()):
                place, found = Path(entry.path), entry.stat(follow_symlinks=False)
                if place in walk.seen or place.name in _PACKAGES:
                    continue
                walk.seen.add(place)
                yield from walk.place(place, found)
                if place.is_dir():  # or a link to a folder
                    folders.append(place)


class _Walk:
    """A walk to files and folders, which looks at each of them once, and at each group once."""

    def __init__(self) -> None:
        self.seen: set[Path] = set()
        self._groups: dict[int, str] = {}

    def way(self, path: Path) -> Iterator[str]:
        """Yield who may write a path, or one of the folders and links on it."""
        for place in (*reversed(path.parents), path):
            if place not in self.seen:
                self.seen.add(place)
                with contextlib.suppress(FileNotFoundError):
                    yield from self.place(place, place.lstat())

    def place(self, place: Path, found: os.stat_result) -> Iterator[str]:
        """Yield who may write one file or folder, or the target of a link."""
        if why := self._who(place, found):
            yield f"{place} {why}"
        if stat.S_ISLNK(found.st_mode):
            # From where the link really is: behind another link ``..`` leads elsewhere.
            yield from self.way(Path(os.path.realpath(place.parent)) / place.readlink())

    def _who(self, place: Path, found: os.stat_result) -> str:
        """Return who besides root may change a file or folder, "" if nobody."""
        if found.st_uid:
            return f"is owned by {_name(found.st_uid)}"
        if stat.S_ISLNK(found.st_mode) or (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
            return ""  # sticky: nobody can change another user's files in such a folder
        if found.st_mode & stat.S_IWOTH:
            return "may be written by everybody"
        if not found.st_mode & stat.S_IWGRP:
            return ""
        gid = found.st_gid
        if gid not in self._groups:
            self._groups[gid] = _with_users(gid)
        group = self._groups[gid] or (_group(gid) if _ACL in os.listxattr(place) else "")
        return f"may be written by group {group}" if group else ""


def _with_users(gid: int) -> str:
    """Return a group's name if users besides root may be in it, else "": root's own, or Debian's while it is empty.

    Other groups may have no users either, but programs that get them, as those of mail do.
    """
    if not gid:
        return ""
    if (name := _group(gid)) != _LOCAL:
        return name
    if asked := _directories():
        return f"{name}, and {asked} may say that users are in it ({_SOURCES})"
    # A user's groups may be elsewhere than a group's users are: systemd knows those of its homes by the user alone.
    users = (user for user in pwd.getpwall() if user.pw_uid)
    used = any(gid in os.getgrouplist(user.pw_name, user.pw_gid) for user in users)
    return name if used or grp.getgrgid(gid).gr_mem else ""


def _directories() -> str:
    """Return the services that may know users whom nobody can list, "" without any (nsswitch.conf(5)).

    A directory service (SSSD, LDAP) lists neither its users nor those of a group that a file of this machine has, too.
    """
    try:
        text = _SOURCES.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""  # then the C library reads files alone
    found: dict[str, None] = {}
    for line in text.splitlines():
        database, _, sources = line.partition("#")[0].partition(":")
        if database.strip() in ("passwd", "group", "initgroups"):
            found |= dict.fromkeys(re.sub(r"\[[^]]*\]", " ", sources).split())
    return ", ".join(source for source in found if source not in _LISTED)


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
