"""Paths between hosts: each host tells what its pings have measured, through the store."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from linkspan.agent.peer_paths import PAUSE, PAUSE_PER_HOST, HostPaths, PeerPaths
from linkspan.cluster.path_quality import PathQuality
from linkspan.cluster.peer_ping import Pair, PeerPings
from linkspan.cluster.questions import PATHS, Ask, PathsQuestion, PathsReply, Question
from linkspan.core.errors import Invalid
from linkspan.core.event_log import EventLog
from linkspan.core.model import Host, Lease
from linkspan.store import records
from linkspan.store.memory import Memory
from linkspan.store.records import ALIVE
from support.polling import eventually
from support.records.replicas import Member, together


class Measured(PeerPings):
    """Pings that were answered after so many seconds, or were not, by network and peer."""

    def __init__(self, found: dict[Pair, float | None]) -> None:
        super().__init__({}, EventLog(Path()))
        self._found = found

    def paths(self) -> list[tuple[Pair, str, PathQuality]]:
        """Return what was measured."""
        return [
            (pair, "10.244.0.1", PathQuality(took or 0.0, asked=4, lost=0 if took else 0b1111))
            for pair, took in self._found.items()
        ]


class Agent:
    """An agent, as far as it asks others and answers them."""

    def __init__(self, memory: Memory, folder: Path, name: str, found: dict[Pair, float | None]) -> None:
        self.member = Member(memory, folder, name)
        self.asked: list[PathsQuestion] = []
        self.ask = Ask(self.member.replica, name, self._answer)
        self.member.told = self.ask.changed
        self.peer_paths = PeerPaths(self.member.hosts, self.member.leases, Measured(found), self.ask)

    async def _answer(self, question: Question) -> PathsReply:
        assert isinstance(question, PathsQuestion)
        self.asked.append(question)
        return self.peer_paths.answer(question)

    async def start(self) -> None:
        """Join the cluster, and live."""
        await self.member.join()
        await self.member.replica.write({f"{ALIVE}{self.member.name}": b"x"})

    async def stop(self) -> None:
        """End."""
        await self.ask.stop()
        await self.member.replica.stop()


def summary(found: list[HostPaths]) -> dict[str, dict[str, tuple[float | None, float]]]:
    """Return round trip and loss by host and peer."""
    return {one.host: {path.peer: (path.round_trip, path.loss) for path in one.paths} for one in found}


def test_all_hosts_tell_their_worst_paths(tmp_path: Path) -> None:
    """One that is silent is named with the reason, and who asks again at once gets the same answer."""

    async def work() -> None:
        memory = Memory()
        one = Agent(memory, tmp_path, "h1", {("demo", "h2"): 0.001, ("web", "h2"): 0.004})
        two = Agent(memory, tmp_path, "h2", {("demo", "h1"): None})
        third = Agent(memory, tmp_path, "h3", {})
        for agent in (one, two):
            await agent.start()
        await third.member.join()
        await eventually(lambda: one.member.hosts.alive() >= {"h1", "h2"} and "h3" in one.member.hosts.all(), "all")
        found = await one.peer_paths.all()
        assert summary(found) == {"h1": {"h2": (0.004, 0.0)}, "h2": {"h1": (None, 1.0)}, "h3": {}}
        assert [one.host for one in found if one.problem] == ["h3"]
        assert await one.peer_paths.all() == found
        assert two.asked == [PathsQuestion(("h1", "h3"))], "of those that are shown, and once"
        assert len(one.peer_paths.own().paths) == 2
        for agent in (one, two, third):
            await agent.stop()

    together(work)


def told(found: dict[Pair, float | None], peers: tuple[str, ...], folder: Path) -> PathsReply:
    """Return the answer of a host that has measured this."""
    return Agent(Memory(), folder, "h1", found).peer_paths.answer(PathsQuestion(peers))


def test_an_answer_is_of_the_peers_that_were_named_and_a_few_bytes_for_each(tmp_path: Path) -> None:
    """However many others are worse: in the question's order, and every host gets it through the store."""
    found: dict[Pair, float | None] = {("demo", f"h{number}"): number / 1000 for number in range(2, 1000)}
    peers = (*(f"h{number}" for number in range(PATHS, 1, -1)), "unknown")
    reply = told(found, peers, tmp_path)
    assert [path and path.took for path in reply.paths] == [1000 * number for number in range(PATHS, 1, -1)] + [None]
    assert reply.ways == (("demo", 4),)
    assert len(msgspec.json.encode(reply)) < 16 * PATHS


def test_a_path_arrives_with_its_network_and_address(tmp_path: Path) -> None:
    """The answer names neither for each path: the asker has the peers' leases."""

    async def work() -> None:
        memory = Memory()
        one = Agent(memory, tmp_path, "h1", {})
        two = Agent(memory, tmp_path, "h2", {("demo", "h1"): 0.001, ("web", "h1"): 0.004})
        for agent in (one, two):
            await agent.start()
        lease = Lease(network="web", host="h1", addresses=("10.9.0.1/32",))
        await one.member.replica.write({"leases/web/h1": msgspec.json.encode(lease)})
        await eventually(lambda: one.member.hosts.alive() >= {"h1", "h2"} <= one.member.hosts.all().keys(), "both")
        _, of_two = await one.peer_paths.all()
        assert [(path.network, path.address, path.pings) for path in of_two.paths] == [("web", "10.9.0.1", 4)]
        for agent in (one, two):
            await agent.stop()

    together(work)


def test_a_large_cluster_is_asked_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never more than PATHS hosts of it: every host gets what is asked and answered."""
    now = 1000.0
    monkeypatch.setattr("linkspan.agent.peer_paths.loop_time", lambda: now)
    surveyed: list[str] = []

    async def work() -> None:
        nonlocal now
        one = Agent(Memory(), tmp_path, "h50", {})
        await one.start()
        every = [Host(id=f"h{number}", name=f"h{number}") for number in range(100)]
        await one.member.replica.write({f"hosts/{host.id}": msgspec.json.encode(host) for host in every})
        await eventually(lambda: len(one.member.hosts.all()) == 100, "all hosts")
        monkeypatch.setattr(one.peer_paths, "_told", _noted)
        for seconds, times in ((0.0, 1), (PAUSE + 99 * PAUSE_PER_HOST, 1), (2 * PAUSE_PER_HOST, 2)):
            now += seconds
            found = await one.peer_paths.all()
            assert len(found) == PATHS
            assert found[0].host == "h50"
            assert len(surveyed) == times * (PATHS - 1)
        await one.stop()

    async def _noted(host: str, _shown: tuple[str, ...]) -> HostPaths:
        surveyed.append(host)
        return HostPaths(host)

    together(work)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"type":"measured","paths":[[1,5,0,4]],"ways":[["demo",4]]}',
        b'{"type":"measured","paths":[[0,5,5,4]],"ways":[["demo",4]]}',
        b'{"type":"measured","paths":[[0,-5,0,4]],"ways":[["demo",4]]}',
        b'{"type":"measured","paths":[[0,5,0,400]],"ways":[["demo",4]]}',
        b'{"type":"measured","paths":[[0,5,0,4]],"ways":[["demo",5]]}',
        b'{"type":"measured","paths":[' + b"null," * PATHS + b"null]}",
    ],
)
def test_a_false_answer_counts_as_none(answer: bytes) -> None:
    """The reader drops it, because anybody who writes to the store can write it."""
    with pytest.raises(Invalid):
        records.parse(answer, PathsReply)
