"""Links that are being deleted: what becomes of them is our own change, as long as the deletion may succeed."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Sequence

import pytest

from linkspan.core.errors import KernelError
from linkspan.core.states.host import Address, State
from linkspan.kernel import events
from linkspan.kernel.drivers import links
from linkspan.kernel.drivers.links import LEAVING, Leaving, Removal
from linkspan.kernel.events import RouteEvents
from linkspan.kernel.io.netlink import DELADDR, Message
from linkspan.kernel.kinds import kinds

ADDRESS_OF_7 = struct.pack("=BBBBi", 2, 24, 0, 0, 7)
"""An address of the link with index 7 (struct ifaddrmsg)."""


class Kernel:
    """A netlink socket, at a kernel that refuses to delete links, and tells the messages of ``told`` once."""

    told: tuple[tuple[int, int, bytes], ...] = ()
    refuses = KernelError("not supported", 95)

    def __init__(self, protocol: int = 0, groups: Sequence[int] = ()) -> None:
        self.port = 1
        self._quiet, self._end = os.pipe()
        self._told = self.told if protocol or groups else ()

    def fileno(self) -> int:
        """Return a descriptor at which nothing ever comes."""
        return self._quiet

    def batch(self, messages: Sequence[Message]) -> list[KernelError | None]:
        """Refuse each."""
        return [self.refuses for _ in messages]

    def dump(self, *_question: object) -> Iterator[bytes]:
        """Return no link."""
        return iter(())

    def only(self, kind: int) -> None:
        """Pass everything."""

    def receive(self) -> Iterator[tuple[int, int, bytes]]:
        """Tell the messages, then nothing."""
        if not self._told:
            raise BlockingIOError
        told, self._told = self._told, ()
        yield from told

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self._quiet)
        os.close(self._end)


def _dirty(monkeypatch: pytest.MonkeyPatch, leaving: Leaving) -> frozenset[type[State]]:
    """Return what is observed because link 7 has lost an address."""
    monkeypatch.setattr(Kernel, "told", ((DELADDR, 0, ADDRESS_OF_7),))
    monkeypatch.setattr(events, "Socket", Kernel)
    found = RouteEvents(kinds(), leaving=leaving)
    try:
        return found.dirty()
    finally:
        found.socket.close()


def test_a_link_that_the_kernel_did_not_delete_is_not_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent heals at once what somebody changes at it."""
    monkeypatch.setattr(links, "Socket", Kernel)
    removal = Removal(2)
    try:
        failed = removal.remove({7: (("veth", "lsp7"), "lsp7"), 8: (("veth", "lsp8"), "lsp8")})
        assert set(failed.values()) == {Kernel.refuses}
        assert removal.leaving == {}
        assert Address in _dirty(monkeypatch, removal.leaving)
    finally:
        removal.close()


@pytest.mark.parametrize(("seconds", "counts"), [(0.0, False), (LEAVING + 1, True)])
def test_a_link_leaves_for_some_seconds_only(monkeypatch: pytest.MonkeyPatch, seconds: float, *, counts: bool) -> None:
    """No other deletion has to come for that."""
    assert (Address in _dirty(monkeypatch, {7: time.monotonic() - seconds})) is counts
