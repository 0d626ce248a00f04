"""Files with a secret: rendered from a text and the secret's own file, and stored nowhere else.

The memory file has the states, without the secret. To check a file of ours, the driver renders it again. Only
root may read the secret's file, because otherwise the secret would be public already.
"""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from linkspan.core.driver_contract import Support
from linkspan.core.errors import Invalid, LinkspanError, of_errno
from linkspan.core.kinds import Kind, Sort
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.states.programs import SECRET, Process, Secret
from linkspan.kernel.io import durable_files
from linkspan.kernel.io.durable_files import Memory
from linkspan.kernel.io.private_files import alone, apart
from linkspan.kernel.local_host import LocalHost

MODE = 0o600
LONGEST = 80
"""Bytes: TCP_MD5SIG_MAXKEYLEN in linux/tcp.h."""


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
