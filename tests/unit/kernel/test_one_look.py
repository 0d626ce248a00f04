"""One look at the host: what it asks of the kernel, however many drivers look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from linkspan.core.driver_contract import Support
from linkspan.core.errors import LinkspanError
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import HOST, Bridge, Key, State, Veth, Vxlan
from linkspan.core.states.ipsec import IpsecLink
from linkspan.kernel.drivers import nftables_objects
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.netlink import GETLINK
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.kinds import kinds
from linkspan.kernel.machine import Machine
from support.links import message

CONTAINER = 4026532000
BRIDGE = Bridge("ls-net", b"\2\0\0\0\0\1", 1500)


class Unused:
    """Libnftables, which nobody asks here."""

    def close(self) -> None:
        """Do nothing."""


class Kernel:
    """The links of a namespace, and how often they were listed."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.listed = 0

    def dump(self, kind: int, _body: bytes, _what: str) -> list[bytes]:
        """List them."""
        assert kind == GETLINK
        self.listed += 1
        return [message(n, name) for n, name in enumerate(self.names, 1)]


class Bridges:
    """A driver that finds and makes bridges."""

    def __init__(self, sockets: Sockets, host: Kernel) -> None:
        self._sockets = sockets
        self._host = host

    def probe(self) -> Support:
        """Return support."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Find the bridge by its name."""
        return [BRIDGE for name in self._sockets.names(netns).values() if name == BRIDGE.name]

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Make it."""
        self._host.names += [state.name for state in put if isinstance(state, Bridge)]
        return {}


class Pairs(Bridges):
    """Another driver that looks at links."""

    def observe(self, netns: int) -> Iterable[State]:
        """Find none of its own."""
        assert not self._sockets.own_links()
        return []


@pytest.fixture
def host() -> Kernel:
    """Return the host's links."""
    return Kernel("lo", "eth0")


@pytest.fixture
def sockets(host: Kernel, monkeypatch: pytest.MonkeyPatch) -> Sockets:
    """Return sockets to the host and to a container."""
    container = Kernel("lo")
    monkeypatch.setattr(Sockets, "at", lambda _self, netns: host if netns == HOST else container)
    return Sockets(cast("Namespaces", None))


@pytest.fixture
def reconciler(sockets: Sockets, host: Kernel) -> Reconciler:
    """Return a reconciler of both drivers."""
    known = kinds()
    served = [(known[Bridge], Bridges(sockets, host)), (known[Veth], Pairs(sockets, host))]
    return Reconciler(served, one_look=sockets.one_look)


@pytest.fixture
def machine(host: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Return a machine with all of linkspan's drivers, on the host's links."""
    monkeypatch.setattr(Sockets, "at", lambda _self, _netns: host)
    monkeypatch.setattr(nftables_objects, "Nft", Unused)
    made = Machine(tmp_path)
    yield made
    made.close()


def test_all_drivers_look_at_one_list_of_links(host: Kernel, reconciler: Reconciler) -> None:
    """With 200 containers each list costs milliseconds, and a dozen of them were asked for."""
    reconciler.difference()
    assert host.listed == 1


def test_the_agents_machine_lists_its_links_once_for_each_look(host: Kernel, machine: Machine) -> None:
    """Its own drivers of bridges, tunnels and IPsec's device share the list."""
    machine.reconciler.difference((Bridge, Vxlan, IpsecLink))
    assert host.listed == 1
    machine.reconciler.difference((Bridge, Vxlan, IpsecLink))
    assert host.listed == 2


def test_links_are_listed_anew_after_a_change(host: Kernel, reconciler: Reconciler) -> None:
    """A link that a look has made is found by the next one, and is not made twice."""
    reconciler.desired.replace(("test",), [BRIDGE])
    report = reconciler.resync()
    assert [heal.what for heal in report.heals] == ["added"]
    assert host.names == ["lo", "eth0", BRIDGE.name]


def test_outside_of_a_look_links_are_as_they_are_now(host: Kernel, sockets: Sockets) -> None:
    """An attach never decides by an answer older than its question."""
    with sockets.one_look():
        sockets.names(HOST)
    host.names.append("eth1")
    assert "eth1" in sockets.names(HOST).values()


def test_a_containers_links_are_its_own_during_a_look(sockets: Sockets) -> None:
    """Those of the host are not taken for them."""
    with sockets.one_look():
        assert len(sockets.names(HOST)) == 2
        assert sockets.names(CONTAINER) == {1: "lo"}
