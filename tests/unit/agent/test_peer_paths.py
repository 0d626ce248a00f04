"""Paths between hosts: each host tells what its pings have measured, through the store."""

from __future__ import annotations

from pathlib import Path

from linkspan.agent.peer_paths import HostPaths, PeerPaths
from linkspan.cluster.path_quality import PathQuality
from linkspan.cluster.peer_ping import Pair, PeerPings
from linkspan.cluster.questions import PATHS, Ask, PathsQuestion, PathsReply, Question
from linkspan.store.memory import Memory
from linkspan.store.records import ALIVE
from support.polling import eventually
from support.records.replicas import Member, together


class Measured(PeerPings):
    """Pings that were answered after so many seconds, or were not, by network and peer."""

    def __init__(self, found: dict[Pair, float | None]) -> None:
        super().__init__({})
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
        self.asked = 0
        self.ask = Ask(self.member.replica, name, self._answer)
        self.member.told = self.ask.changed
        self.peer_paths = PeerPaths(self.member.hosts, Measured(found), self.ask)

    async def _answer(self, question: Question) -> PathsReply:
        assert question == PathsQuestion()
        self.asked += 1
        return self.peer_paths.answer()

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
        assert two.asked == 1
        assert len(one.peer_paths.own().paths) == 2
        for agent in (one, two, third):
            await agent.stop()

    together(work)


def test_an_answer_has_a_limited_number_of_peers(tmp_path: Path) -> None:
    """The best are left out: it goes through the store to every host."""
    found: dict[Pair, float | None] = {("demo", f"h{number}"): number / 1000 for number in range(2, 100)}
    agent = Agent(Memory(), tmp_path, "h1", found)
    paths = agent.peer_paths.answer().paths
    assert len(paths) == PATHS
    assert paths[0].peer == "h99"
