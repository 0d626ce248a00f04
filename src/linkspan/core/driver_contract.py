"""Contract of drivers: what a module that reads and writes a kind of kernel object must provide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from linkspan.core.errors import LinkspanError
from linkspan.core.states.host import Key, State


class Support(msgspec.Struct, frozen=True):
    """Support of a driver on this machine: ``by`` is "kernel", "user space" or "" with the reason in ``why_not``."""

    by: str
    why_not: str = ""


class Driver(Protocol):
    """Reads and writes some kinds of state on the real machine. Runs in the worker thread only."""

    def probe(self) -> Support:
        """Return whether the machine supports the driver."""

    def observe(self, netns: int) -> Iterable[State]:
        """Return the observed states of these kinds in a namespace that are ours, with normalised values.

        ``netns`` 0 is the host's. Kinds that exist only on the host yield nothing for other namespaces.
        Raises LinkspanError if the kernel does not answer; NotFound if the namespace is gone.
        """

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Make and change ``put``, then remove ``delete``; continue past errors and return them by key.

        A put is idempotent, and so is a delete of an object that is gone already.
        """


@runtime_checkable
class Stamped(Protocol):
    """A driver that finds out more quickly whether the host is as before than what it observes there."""

    def stamp(self) -> object:
        """Return a value that equals an earlier one only if ``observe`` would yield the same states for the host.

        Raises what ``observe`` raises.
        """
