"""Endpoints whose namespace is gone are detached once, told once, and never by what another thread changes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from linkspan.core.errors import KernelError
from linkspan.core.model import Endpoint
from linkspan.core.states.host import Key, State, Veth
from linkspan.endpoints.detach import detach
from linkspan.endpoints.reaper import Reaper
from support.records.one_host import endpoint, network
from support.records.registry_stage import NotedMachine, RegistryStage

DEMO = network("demo", "10.1.0.0/24", routed=True)


class Graveyard(NotedMachine):
    """A machine on which these endpoints' namespaces are gone, and their links with them."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: list[Endpoint] = []
        self.loop = threading.get_ident()
        self.looked: list[bool] = []
        """Of each look at the desired states: whether it was on the loop."""
        ask = self.reconciler.desired.state

        def state(key: Key) -> State | None:
            self.looked.append(threading.get_ident() == self.loop)
            return ask(key)

        self.reconciler.desired.state = state  # type: ignore[method-assign]

    def alive(self, endpoint: Endpoint) -> bool:
        """Tell whether it is none of them."""
        return endpoint not in self.gone

    def end(self, endpoint: Endpoint) -> None:
        """Have its container end."""
        self.gone.append(endpoint)
        links = [s for s in self.reconciler.desired.states((Veth,)).values() if endpoint.host_ifname in s.key]
        self.reconciler.failing = {state.key: KernelError("there is no such namespace") for state in links}


class Stage(RegistryStage):
    """A host with containers."""

    def __init__(self, folder: Path) -> None:
        self.machine = Graveyard()
        super().__init__(folder, self.machine)

    async def attach(self, ids: Sequence[str]) -> list[Endpoint]:
        """Have these containers."""
        await self.start(DEMO)
        made = []
        for number, id_ in enumerate(ids, 5):
            one = msgspec.structs.replace(endpoint(DEMO, f"10.1.0.{number}", id_=id_), netns_path="")
            one = msgspec.structs.replace(one, netns=one.netns + number)
            self.kernel.changes(self.registry.states(DEMO, one))
            self.registry.admit(one, 0)
            made.append(one)
        return made

    def told(self) -> list[str]:
        """Return what was told of reaping."""
        return [one.what for one in self.member.event_log.kept("reap")]


def _ids(endpoints: Iterable[tuple[str, str]]) -> set[str]:
    return {id_ for id_, _ in endpoints}


def test_one_that_is_gone_is_detached_and_told_once(tmp_path: Path) -> None:
    """However many looks there are at the same time: the healer has three tasks that look."""

    async def run() -> None:
        stage = Stage(tmp_path)
        one, _ = await stage.attach(["c1", "c2"])
        stage.machine.end(one)
        reaper = Reaper(stage.registry, 0)
        await asyncio.gather(*(reaper.look() for _ in range(3)))
        assert _ids(dict.keys(stage.endpoints)) == {"c2"}
        assert stage.told() == ["c1 is gone, its address is free again"]
        assert stage.machine.looked
        assert not any(stage.machine.looked)
        await stage.stop()

    asyncio.run(run())


def test_one_that_its_runtime_detaches_in_time_is_told_by_nobody(tmp_path: Path) -> None:
    """The reaper waits for a detach that is under way, and then has nothing to do."""

    async def run() -> None:
        stage = Stage(tmp_path)
        (one,) = await stage.attach(["c1"])
        stage.machine.end(one)
        reaper = Reaper(stage.registry, 0)
        await asyncio.gather(reaper.look(), detach(stage.registry, *one.identity))
        assert not stage.endpoints
        assert stage.told() == []
        await stage.stop()

    asyncio.run(run())


def test_a_container_that_ended_is_known_as_gone_until_its_time_is_up(tmp_path: Path) -> None:
    """A failure because of it alone is no drift meanwhile."""

    async def run() -> None:
        stage = Stage(tmp_path)
        one, other = await stage.attach(["c1", "c2"])
        stage.machine.end(one)
        reaper = Reaper(stage.registry, 30)
        await reaper.look()
        assert [identity for identity, seconds in reaper.dead().items() if 0 < seconds <= 30] == [one.identity]
        veths = stage.kernel.desired.states((Veth,))
        assert {key[1]: reaper.orphaned(key) for key in veths} == {one.host_ifname: True, other.host_ifname: False}
        assert _ids(dict.keys(stage.endpoints)) == {"c1", "c2"}
        stage.machine.gone.clear()
        await reaper.look()
        assert reaper.dead() == {}
        await stage.stop()

    asyncio.run(run())


def test_a_container_that_came_back_meanwhile_is_not_detached(tmp_path: Path) -> None:
    """Its endpoint is another one than that whose namespace was looked at."""

    async def run() -> None:
        stage = Stage(tmp_path)
        (one,) = await stage.attach(["c1"])
        stage.machine.end(one)
        again = msgspec.structs.replace(one, netns=one.netns + 100)
        alive = stage.machine.alive

        def back(endpoint: Endpoint) -> bool:
            loop.call_soon_threadsafe(stage.endpoints.__setitem__, one.identity, again)
            return alive(endpoint)

        loop = asyncio.get_running_loop()
        stage.machine.alive = back  # type: ignore[method-assign]
        await Reaper(stage.registry, 0).look()
        assert _ids(dict.keys(stage.endpoints)) == {"c1"}
        assert stage.told() == []
        await stage.stop()

    asyncio.run(run())
