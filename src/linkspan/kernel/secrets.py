"""Files that have a secret in them: rendered from a text and the secret's own file, and never kept anywhere else.

The memory file has the states, in which the secret is not; a file of ours is looked at by rendering it again. The
secret's file must be root's alone, or the secret would be everybody's already.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from linkspan.contracts import Support
from linkspan.errors import Denied, Invalid, LinkspanError, of_errno
from linkspan.kernel import durable
from linkspan.kernel.durable import Memory
from linkspan.programs import SECRET, Secret
from linkspan.state import HOST, Key, State

MODE = 0o600
LONGEST = 80
"""Bytes: TCP_MD5SIG_MAXKEYLEN in linux/tcp.h."""


class SecretDriver:
    """Secret."""

    kinds: tuple[type[State], ...] = (Secret,)

    def __init__(self, memory_file: Path) -> None:
        self._ours: Memory[Secret] = Memory(memory_file, Secret)

    def probe(self) -> Support:
        """Files are everywhere."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Yield our files that exist."""
        if netns == HOST:
            for state in self._ours.entries.values():
                if Path(state.path).exists():
                    yield msgspec.structs.replace(state, current=_current(state))

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Write and take away, each on its own."""
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
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write(path, content, MODE)

    def _delete(self, state: Secret) -> None:
        if self._ours.entries.pop(state.path, None):
            Path(state.path).unlink(missing_ok=True)
            self._ours.save()


def alone(source: str) -> bytes:
    """Return what is in a secret's file. Raises Denied, naming it, where others may read it, or it is not there."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise Denied(
                    f"{source} is not root's alone, and a secret should be",
                    f"chown root: {source}; chmod 600 {source}",
                )
            return file.read(1 << 14).removesuffix(b"\n")
    except OSError as error:
        raise of_errno(error.errno or 0, f"read the secret in {source}") from error


def rendered(state: Secret) -> bytes:
    """Return the file's content. Raises what ``alone`` does, and Invalid where what is in it can be no secret."""
    text = alone(state.source).decode("ascii", errors="replace")
    if not 1 <= len(text) <= LONGEST or not text.isascii() or not text.isprintable() or '"' in text:
        raise Invalid(
            f"what is in {state.source} can be no password",
            f'it has 1 to {LONGEST} printable ASCII characters on one line, and no "',
        )
    return state.text.replace(SECRET, f'"{text}"').encode()


def _current(state: Secret) -> bool:
    path = Path(state.path)
    try:
        return path.read_bytes() == rendered(state) and stat.S_IMODE(path.lstat().st_mode) == MODE
    except (OSError, LinkspanError):
        return False
