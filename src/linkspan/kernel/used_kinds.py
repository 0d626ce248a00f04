"""Record of the kinds from other packages that were used on this host.

Objects of such a kind cannot be seen without its package. So a kind is recorded before its first object is
put, and `uninstall` names those that it cannot look for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from linkspan.core.errors import LinkspanError
from linkspan.core.kinds import Kinds
from linkspan.core.states.host import State
from linkspan.kernel.io.durable_files import Memory

FILE = "kinds.json"
"""In the state folder."""
_OWN = "linkspan."


class _Used(msgspec.Struct):
    package: str
    known_by: str


class UsedKinds:
    """The record in the state folder."""

    def __init__(self, state_dir: Path, kinds: Kinds) -> None:
        self._kinds = kinds
        self._foreign = {kind.state for kind in kinds if not kind.state.__module__.startswith(_OWN)}
        self._memory: Memory[_Used] = Memory(state_dir / FILE, _Used, precious=False)

    def note(self, states: Iterable[State]) -> None:
        """Record the kinds of states that are about to be put."""
        if not self._foreign:
            return
        new = {type(state) for state in states} & self._foreign
        self._foreign -= new
        with contextlib.suppress(LinkspanError):  # a full disk stops no network
            for state in new:
                package = state.__module__.partition(".")[0]
                self._memory.entries[state.__name__] = _Used(package, self._kinds[state].known_by)
            if new:
                self._memory.save()

    def unknown(self) -> list[str]:
        """Return a sentence for each kind that was used here and is not known any more."""
        known = {kind.name for kind in self._kinds}
        return [
            f"objects of kind {name} (known by {used.known_by}), which linkspan cannot see without the package "
            f"{used.package}: install it and run linkspan uninstall again"
            for name, used in sorted(self._memory.entries.items())
            if name not in known
        ]
