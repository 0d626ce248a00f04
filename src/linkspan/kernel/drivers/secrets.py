"""Files with a secret: rendered from a text and the secret's own file, and stored nowhere else.

The memory file has the states, without the secret. To check a file of ours, the driver renders it again. Only
root may read the secret's file, because otherwise the secret would be public already.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from linkspan.core.contracts import Support
from linkspan.core.errors import Denied, Invalid, KernelError, LinkspanError, of_errno
from linkspan.core.kinds import Kind, Sort
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.states.programs import SECRET, Process, Secret
from linkspan.kernel.io import durable_files
from linkspan.kernel.io.durable_files import Memory
from linkspan.kernel.local_host import LocalHost

MODE = 0o600
LONGEST = 80
"""Bytes: TCP_MD5SIG_MAXKEYLEN in linux/tcp.h."""
LARGEST = 1 << 20
"""Largest file that is read, in bytes."""


class SecretDriver:
    """Secret."""

    def __init__(self, memory_file: Path) -> None:
        self._ours: Memory[Secret] = Memory(memory_file, Secret)

    def probe(self) -> Support:
        """Return support: files are everywhere."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Yield our files that exist."""
        if netns == HOST:
            for state in self._ours.entries.values():
                if Path(state.path).exists():
                    yield msgspec.structs.replace(state, current=_current(state))

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Write and remove, each file on its own."""
        errors: dict[Key, LinkspanError] = {}
        for states, act in ((put, self._put), (delete, self._delete)):
            for state in states:
                assert isinstance(state, Secret)
                try:
                    act(state)
                except LinkspanError as error:
                    errors[state.key] = error
                except OSError as error:
                    errors[state.key] = of_errno(error.errno or 0, f"write {state.path}")
        return errors

    def _put(self, state: Secret) -> None:
        content = rendered(state)
        if self._ours.entries.get(state.path) != state:
            self._ours.entries[state.path] = state
            self._ours.save()
        path = Path(state.path)
        apart(path.parent)
        durable_files.write(path, content, MODE)

    def _delete(self, state: Secret) -> None:
        if self._ours.entries.pop(state.path, None):
            Path(state.path).unlink(missing_ok=True)
            self._ours.save()


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


def rendered(state: Secret) -> bytes:
    """Return the file's content. Raises what ``alone`` does, and Invalid if the secret's content is no valid secret."""
    text = alone(state.source).decode("ascii", errors="replace")
    if not 1 <= len(text) <= LONGEST or not text.isascii() or not text.isprintable() or '"' in text:
        raise Invalid(
            f"the content of {state.source} is no valid password",
            f'it has 1 to {LONGEST} printable ASCII characters on one line, and no "',
        )
    return state.text.replace(SECRET, f'"{text}"').encode()


def _current(state: Secret) -> bool:
    path = Path(state.path)
    try:
        return path.read_bytes() == rendered(state) and stat.S_IMODE(path.lstat().st_mode) == MODE
    except (OSError, LinkspanError):
        return False


def driver(host: LocalHost) -> SecretDriver:
    """Return the driver of files with a secret."""
    return SecretDriver(host.state_dir / "secrets.json")


def _write(state: Secret, _shell: Shell) -> tuple[str, ...]:
    """Return a command that reads the password from its own file, so that it is not displayed."""
    source, target = shlex.quote(state.source), shlex.quote(state.path)
    before, after = (shlex.quote(part) for part in state.text.split(SECRET))
    return (f"(umask 077; printf '%s\"%s\"%s' {before} \"$(cat {source})\" {after} >{target})",)


KINDS = (
    Kind(
        state=Secret,
        rank=70,
        driver=driver,
        known_by="a record in the state folder, with what was there before",
        purpose="configuration of a helper program, with a password",
        sort=Sort.FILE,
        commands=_write,
        read_by=Process,
    ),
)
