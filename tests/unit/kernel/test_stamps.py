"""Stamps of drivers: what changes one, so that a look at everything compares, and what does not."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from linkspan.core.driver_contract import Stamped, Support
from linkspan.core.states.host import HOST, LEARNT_METRIC
from linkspan.core.states.programs import LearntRoutes
from linkspan.kernel.drivers import learnt_routes
from linkspan.kernel.drivers.ipsec import CharonDriver
from linkspan.kernel.drivers.learnt_routes import ENDING, SELDOM, LearntDriver
from linkspan.kernel.drivers.neighbours_and_fdb import NeighbourDriver
from linkspan.kernel.drivers.wireguard import WireguardDriver
from linkspan.kernel.io.neighbour_messages import AF_BRIDGE, DST, LLADDR, NDMSG, PERMANENT, SELF
from linkspan.kernel.io.netlink import attr
from linkspan.kernel.kinds import kinds

MAC = bytes([2, 0, 0, 0, 0, 9])
TIMES = 3  # NDA_CACHEINFO in linux/neighbour.h
PORT = 6  # NDA_PORT
INET, INET6 = 2, 10


class Kernel:
    """A kernel's sockets: no links, and these neighbours and forwarding entries."""

    def __init__(self, *entries: bytes) -> None:
        self.entries = entries

    def at(self, _netns: int) -> Kernel:
        """Return the socket of the host."""
        return self

    def links(self, _netns: int) -> list[object]:
        """Return no link."""
        return []

    def dump(self, _kind: int, body: bytes, _what: str) -> list[bytes]:
        """Return the entries of the family that is asked for; 0 is IPv4 and IPv6."""
        return [one for one in self.entries if (one[0] == AF_BRIDGE) == (body[0] == AF_BRIDGE)]


def stamp(*entries: bytes) -> object:
    """Return the stamp of a kernel with these entries."""
    return NeighbourDriver(cast("Any", Kernel(*entries)), kinds()).stamp()


def neighbour(address: bytes, mac: bytes = MAC, age: int = 0, more: bytes = b"") -> bytes:
    """Return a neighbour as the kernel reports it."""
    head = NDMSG.pack(INET if len(address) == 4 else INET6, 7, PERMANENT, 0, 1)
    return head + attr(DST, address) + attr(LLADDR, mac) + attr(TIMES, struct.pack("=4I", age, age, age, 0)) + more


def entry(address: bytes, mac: bytes = MAC, age: int = 0, between: bytes = b"", more: bytes = b"") -> bytes:
    """Return a forwarding entry of VXLAN as the kernel reports it; a port or a device comes before its times."""
    head = NDMSG.pack(AF_BRIDGE, 7, PERMANENT, SELF, 0) + attr(LLADDR, mac) + attr(DST, address)
    return head + between + attr(TIMES, struct.pack("=4I", age, age, age, 0)) + more


V4, V6 = bytes([10, 0, 0, 1]), bytes([0xFD, *range(15)])
LIKE_TIMES = bytes(4) + attr(TIMES, bytes(8))[:4] + bytes(8)
"""An address of IPv6 with the head of the times in it: anybody may have such a one."""


@pytest.mark.parametrize("make", [neighbour, entry])
@pytest.mark.parametrize("address", [V4, V6, LIKE_TIMES])
def test_the_age_of_an_entry_changes_nothing_and_all_else_does(make: Callable[..., bytes], address: bytes) -> None:
    """Also the last byte of the address, and what the kernel reports beside it."""
    others = [
        make(address[:-1] + bytes([address[-1] ^ 1])),
        make(address, mac=MAC[:-1] + b"\x08"),
        make(address, more=attr(PORT, b"\0\1")),
        make(address, more=attr(PORT, b"\0\2")),
    ]
    if make is entry:
        others += [make(address, between=attr(PORT, bytes([0, n]))) for n in (3, 4)]
    every = [make(address), *others]
    assert stamp(make(address, age=1)) == stamp(make(address, age=900))
    assert all(stamp(one) != stamp(two) for one, two in itertools.combinations(every, 2))


def test_a_driver_whose_device_is_away_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each second most hosts have no WireGuard and no IPsec; what they have there is observed each time."""
    there = [False]
    wireguard = WireguardDriver(cast("Any", None), tmp_path, lambda: Support("kernel"))
    monkeypatch.setattr(wireguard, "_there", lambda: there[0])
    charon = CharonDriver(Path("/nonexistent"), lambda: 7 * there[0])
    for driver in (wireguard, charon):
        assert isinstance(driver, Stamped)
        there[0] = False
        assert driver.stamp() == driver.stamp()
        there[0] = True
        assert driver.stamp() != driver.stamp()


def test_learnt_routes_are_looked_for_when_somebody_may_add_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a speaker is wanted, while one ends, and seldom without one: until then nothing is as it was."""
    now, there = [100.0], list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(learnt_routes, "learnt_routes", lambda _sockets, _metric: there)
    monkeypatch.setattr(learnt_routes, "sweep", lambda _sockets, _routes: None)
    driver = LearntDriver(cast("Any", None), lambda _process: None)

    def same() -> bool:
        return driver.stamp() == driver.stamp()

    assert not same()
    assert list(driver.observe(HOST)) == []
    assert same()
    wanted = LearntRoutes(LEARNT_METRIC, "bird", 60)
    driver.apply([wanted], [])
    assert not same()
    driver.apply([], [wanted])
    assert list(driver.observe(HOST)) == []
    assert not same()
    now[0] += ENDING + 1
    assert list(driver.observe(HOST)) == []
    assert same()
    now[0] += SELDOM
    assert not same()
