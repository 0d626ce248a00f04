"""Where egress addresses may be put: one look at the host serves many of them."""

from __future__ import annotations

import pytest

from linkspan.core.addresses import prefix
from linkspan.kernel.drivers import egress_addresses
from linkspan.kernel.drivers.egress_addresses import EgressAddressDriver
from linkspan.kernel.io.address_messages import HeldAddress
from linkspan.kernel.io.link_messages import IFF_UP, IFNAME, Link
from linkspan.kernel.io.sockets import Sockets


class Known(Link):
    """A link; those with our names are ours."""

    @property
    def ours(self) -> bool:
        """Return whether it has such a name."""
        return self.name.startswith("ls-")


class Host(Sockets):
    """A host with a link that is up, one that is down, and one of ours."""

    def __init__(self) -> None:
        self.looks = 0

    def at(self, netns: int) -> None:  # type: ignore[override]
        """Open nothing."""

    def links(self, netns: int) -> list[Link]:
        """Return the links."""
        self.looks += 1
        names = {1: "lo", 2: "up0", 3: "down0", 4: "ls-demo"}
        return [Known(n, 0 if n == 3 else IFF_UP, {IFNAME: name.encode() + b"\0"}) for n, name in names.items()]


def test_one_look_at_the_host_finds_the_links_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop does this by itself, and a host with many containers takes long to list its links."""
    texts = {1: "127.0.0.1/8", 2: "192.0.2.1/24", 3: "198.51.100.1/24", 4: "10.244.0.1/16"}
    own = [HeldAddress(link, prefix(text), 0, {}) for link, text in texts.items()]
    monkeypatch.setattr(egress_addresses, "held", lambda *_: own)
    host = Host()
    driver = EgressAddressDriver(host)
    free = [prefix(f"192.0.2.{n}").single() for n in range(10, 110)]
    others = [prefix(one).single() for one in ("192.0.2.1", "198.51.100.7", "10.244.0.9", "127.0.0.9", "203.0.113.9")]
    assert driver.places([*free, *others]) == dict.fromkeys(free, "up0")
    assert driver.asking([*free, *others]) == {"up0": {one.packed: bytes(4) for one in free}}
    assert host.looks == 2
    assert driver.places([]) == {}
    assert host.looks == 2
