"""Questions for addresses that another machine may have: links, and IPv4 and IPv6, at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Mapping

import pytest

from linkspan.cluster import address_probe
from linkspan.core.addresses import Prefix, prefix
from linkspan.kernel.drivers.egress_addresses import EgressAddressDriver
from linkspan.kernel.probe import arp
from linkspan.kernel.worker import Worker
from support.memory_machine import MemoryMachine

OWN = prefix("2001:db8::1").packed
MAC = bytes.fromhex("02000000000a")


class OnTwoLinks(EgressAddressDriver):
    """Addresses of 192.0.2.0/24 and of IPv6 are on eth0, others on eth1."""

    def __init__(self) -> None: ...

    def asking(self, addresses: Collection[Prefix]) -> dict[str, dict[bytes, bytes]]:
        """Return the addresses by link, with the source of each question."""
        found: dict[str, dict[bytes, bytes]] = {}
        for one in addresses:
            link = "eth0" if one.family == 6 or one.address.startswith("192.0.2.") else "eth1"
            found.setdefault(link, {})[one.packed] = OWN if one.family == 6 else bytes(4)
        return found


def test_all_are_asked_for_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of each question count for its link."""
    together = threading.Barrier(3, timeout=20)
    asked: list[tuple[str, frozenset[bytes]]] = []

    def answering(device: str, some: Mapping[bytes, bytes], *_: object) -> dict[bytes, bytes]:
        together.wait()
        asked.append((device, frozenset(some)))
        return {address: MAC for address in some if address == prefix("198.51.100.7").packed}

    monkeypatch.setattr(arp, "answering", answering)
    machine = MemoryMachine()
    machine.egress = OnTwoLinks()
    addresses = [prefix(text) for text in ("192.0.2.7", "192.0.2.8", "198.51.100.7", "2001:db8::7")]
    found = asyncio.run(address_probe.rivals(Worker(machine), addresses))
    assert found == {addresses[2]: "another machine, with MAC 02:00:00:00:00:0a on eth1"}
    assert set(asked) == {
        ("eth0", frozenset(one.packed for one in addresses[:2])),
        ("eth1", frozenset({addresses[2].packed})),
        ("eth0", frozenset({addresses[3].packed})),
    }
