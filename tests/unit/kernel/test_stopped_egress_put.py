"""An agent that is stopped while it puts an egress address: the kernel counts from the moment it gets the message."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.errors import Unavailable
from linkspan.core.states.host import EgressAddress
from linkspan.kernel.drivers import egress_addresses
from linkspan.kernel.drivers.egress_addresses import LIFETIME, PAUSE, EgressAddressDriver
from linkspan.kernel.io.netlink import NEWADDR, Message
from linkspan.kernel.io.sockets import Sockets

STATE = EgressAddress("eth0", prefix("192.0.2.100"))


class Stopped(Sockets):
    """A kernel with one address; before each message it gets the next one of some pauses passes."""

    def __init__(self, pauses: list[float]) -> None:
        self.clock = 1000.0
        self.ends = 0.0
        """When the address ends."""
        self._pauses = pauses

    def index(self, netns: int, name: str) -> int:
        """Return the link's index."""
        return 2

    def at(self, netns: int) -> Any:
        """Return the socket."""
        return self

    def request(self, message: Message) -> None:
        """Put the address, or remove it."""
        self.clock += self._pauses.pop(0) if self._pauses else 0.0
        added = message.type == NEWADDR
        self.ends = self.clock + _valid(message.body) if added else 0.0


def _valid(body: bytes) -> int:
    """Return the seconds in the message's struct ifa_cacheinfo, which is its attribute 6."""
    rest = body[8:]
    while rest:
        length, kind = struct.unpack_from("=HH", rest)
        if kind == 6:
            return int(struct.unpack_from("=II", rest, 4)[1])
        rest = rest[(length + 3) & ~3 :]
    raise AssertionError("no lifetime")


@pytest.fixture
def putting(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], tuple[Stopped, dict[Any, Any], float]]:
    """Put an address with such pauses; return the kernel, the errors, and until when it may be there."""

    def put(pauses: list[float]) -> tuple[Stopped, dict[Any, Any], float]:
        kernel = Stopped(pauses)
        monkeypatch.setattr(egress_addresses, "now", lambda: kernel.clock)
        driver = EgressAddressDriver(kernel)
        until = kernel.clock + LIFETIME - 0.05
        driver.hold(STATE.prefix, until)
        return kernel, dict(driver.apply([STATE], ())), until

    return put


@pytest.mark.parametrize("pauses", [[], [0.05], [0.9], [1.5], [2.5], [1.2, 1.2]])
def test_it_has_the_rest_of_its_time(
    putting: Callable[[list[float]], tuple[Stopped, dict[Any, Any], float]], pauses: list[float]
) -> None:
    """It is put again if the message came too late for the seconds in it."""
    kernel, failed, until = putting(pauses)
    assert failed == {}
    assert kernel.clock < kernel.ends <= until + PAUSE


@pytest.mark.parametrize("pauses", [[3.2], [5.0], [60.0], [1.5, 1.8], [1.5, 30.0]])
def test_it_is_removed_if_its_time_is_over(
    putting: Callable[[list[float]], tuple[Stopped, dict[Any, Any], float]], pauses: list[float]
) -> None:
    """Less than a second is none: the kernel counts whole ones."""
    kernel, failed, _ = putting(pauses)
    assert isinstance(failed[STATE.key], Unavailable)
    assert kernel.ends == 0.0
