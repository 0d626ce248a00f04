"""Plans: what a network needs of this host, and what is put where the host cannot have all of it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from linkspan.agent.plans import Plans
from linkspan.core.config import Config
from linkspan.core.errors import LinkspanError
from linkspan.core.model import Facts, Host, HostView, Underlay
from linkspan.core.states.host import Key, NftElement, Route, State, Wireguard
from linkspan.core.states.ipsec import Strongswan
from linkspan.core.states.wireguard import Tools
from support.memory_machine import MemoryMachine, worker_of
from support.records.peers import HERE, network, view


class _Stage:
    """A host that may lose its underlay."""

    def __init__(self, backend: str) -> None:
        self.network = network(backend, mtu=1400)
        self.underlay: Underlay | None = HERE
        self.machine = MemoryMachine()
        self.plans = Plans(worker_of(self.machine), self._view, Config())

    def _view(self) -> HostView:
        key = "A" * 43 + "="
        host = Host(id="id1", name="h1", underlay=self.underlay, keys={"wireguard": key})
        daemon = Strongswan("/usr/sbin/charon-systemd", "/state/ipsec", kernel=True, plugin=True)
        facts = Facts(programs=(Tools(public=key, file="/state/private.key"), daemon))
        return msgspec.structs.replace(view(self.network), host=host, facts=facts)

    def put(self) -> dict[Key, LinkspanError]:
        """Put the plans."""
        return asyncio.run(self.plans.put())

    def wanted(self, kind: type[State]) -> list[State]:
        """Return what is desired of a kind."""
        return list(self.machine.reconciler.desired.states((kind,)).values())


@pytest.mark.parametrize("backend", ["wireguard", "ipsec", "vxlan"])
def test_without_an_underlay_a_network_is_refused_with_the_reason(backend: str) -> None:
    """The agent lives on; the pools are closed, and sealed where they are encrypted."""
    stage = _Stage(backend)
    stage.underlay = None
    stage.put()
    assert any("no underlay" in why and "--underlay IFNAME" in why for why in stage.plans.problems)
    assert not stage.wanted(Wireguard)
    assert [s for s in stage.wanted(Route) if isinstance(s, Route) and not s.device]
    sealed = [s for s in stage.wanted(NftElement) if isinstance(s, NftElement) and s.set == "sealed4"]
    assert bool(sealed) == (backend != "vxlan")


def test_what_stands_stays_while_the_underlay_is_away() -> None:
    """And new objects follow once it is back."""
    stage = _Stage("wireguard")
    assert stage.put() == {}
    (before,) = stage.wanted(Wireguard)
    stage.underlay = None
    stage.put()
    assert stage.wanted(Wireguard) == [before]
    stage.underlay = msgspec.structs.replace(HERE, mtu=9000)
    assert stage.put() == {}
    assert stage.plans.problems == []
    assert stage.wanted(Wireguard) == [Wireguard("lswg", 8940, tun=False)]
