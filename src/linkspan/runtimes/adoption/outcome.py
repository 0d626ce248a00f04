"""Words of `linkspan adopt`, for every runtime that can do it: what was done, what was left, and the commands."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec


class Done(msgspec.Struct, frozen=True):
    """One thing that was done, or (dry run) would be: the object, and what became of it.

    ``seconds`` is how long a running container was without the network, 0 for anything else.
    """

    object: str
    what: str
    seconds: float = 0.0


class Left(msgspec.Struct, frozen=True):
    """One thing that cannot be moved, or is different afterwards: the object, the reason, and what to do."""

    object: str
    why: str
    fix: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of an adoption, its reversal or a dry run: what it did, left and changed."""

    done: tuple[Done, ...] = ()
    left: tuple[Left, ...] = ()
    notes: tuple[Left, ...] = ()


class Ask(Protocol):
    """A call of this host's agent: method, path and body. Raises LinkspanError."""

    def __call__(self, method: str, url: str, body: object = None) -> Any:
        """Return the decoded answer."""


class Adopter(Protocol):
    """Takes over a runtime's networks, by their names. Every method raises LinkspanError."""

    def preview(self, network: str) -> Outcome:
        """Return what `adopt` would do, and what it would refuse. Change nothing."""

    def adopt(self, network: str, *, slow: bool) -> Outcome:
        """Take over the network, or continue where an earlier call ended.

        ``slow`` also moves more containers than can be moved within a second.
        """

    def undo(self, network: str) -> Outcome:
        """Give the network back to the runtime as it was, or continue where an earlier call ended."""

    def confirm(self, network: str) -> Outcome:
        """Forget how the network was: it cannot be given back afterwards."""
