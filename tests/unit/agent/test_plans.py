"""Plans: what a network needs of this host, and what is put where the host cannot have all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
import pytest

from linkspan.agent.plans import Plans
from linkspan.backends import BACKENDS
from linkspan.backends.base import BaseBackend
from linkspan.cluster.shared_states import SharedStates
from linkspan.core.backend_contract import HostPhase
from linkspan.core.config import Config
from linkspan.core.desired import Source
from linkspan.core.errors import LinkspanError
from linkspan.core.host_view import Facts, HostView
from linkspan.core.model import Host, Underlay
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


class _Shared(BaseBackend):
    """A backend that has something on the host for all its networks together, and neither encrypts nor learns."""

    name = "shared"

    def __init__(self, phase: HostPhase) -> None:
        self.host_phase = phase

    def host(self, view: HostView) -> Iterable[State]:
        """Return a link."""
        return [Wireguard("lsshared", 1400, tun=False)] if any(n.backend == self.name for n in view.networks) else []


@pytest.mark.parametrize("phase", ["before networks", "after peers"])
def test_what_serves_all_networks_of_a_backend_is_put_in_its_phase_alone(
    phase: HostPhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two phases puts it, whatever the backend is: two would replace each other's states."""
    monkeypatch.setitem(BACKENDS, "shared", _Shared(phase))
    stage = _Stage("shared")
    shared_states = SharedStates(worker_of(stage.machine), stage._view)
    stage.put()
    assert bool(stage.wanted(Wireguard)) == (phase == "before networks")
    before = _copy(stage)
    assert asyncio.run(shared_states.put()) == {}
    assert stage.wanted(Wireguard) == [Wireguard("lsshared", 1400, tun=False)]
    changed = [source for source, states in _copy(stage).items() if states != before.get(source)]
    assert changed == ([("host", "shared")] if phase == "after peers" else [])


def _copy(stage: _Stage) -> dict[Source, dict[Key, State]]:
    return {source: dict(states) for source, states in stage.machine.reconciler.desired.sources().items()}


def test_what_served_networks_goes_after_the_last_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays while peers have something on it."""
    monkeypatch.setitem(BACKENDS, "shared", _Shared("before networks"))
    stage = _Stage("shared")
    stage.put()
    stage.network = network("vxlan", mtu=1400)
    stage.put()
    assert stage.wanted(Wireguard)
    asyncio.run(stage.plans.drop())
    assert not stage.wanted(Wireguard)
