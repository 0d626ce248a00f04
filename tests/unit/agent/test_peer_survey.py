"""`doctor --peers` in clusters of all sizes: who is asked when, and what a host's group is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from linkspan.agent.peer_survey import PeerSurvey
from linkspan.cluster.questions import Ask, Question, T
from linkspan.core.host_view import Peer
from linkspan.core.model import Host
from linkspan.diagnose.doctor.checks import Check
from linkspan.diagnose.doctor.peer_probe import Carried, Gap, Probe, Probed
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.store.memory import Memory
from linkspan.store.records import ALIVE
from support.records.peers import network, peer, view
from support.records.replicas import Member
from support.virtual_time import in_virtual_time

WHAT = "UDP port 4789 (VXLAN)"


class Asked(Ask):
    """Hosts that answer after five seconds, with ``answer``."""

    def __init__(self, member: Member, answer: Probed) -> None:
        super().__init__(member.replica, member.name, self._answer_nothing)
        self.answer = answer
        self.hosts: list[str] = []
        self.open = self.most = 0

    async def _answer_nothing(self, _question: Question) -> Probed:
        return Probed()

    async def ask(self, host: str, question: Question, kind: type[T], patience: float = 0) -> T:
        """Take part, as far as the asker sees it."""
        assert isinstance(question, Probe)
        self.hosts.append(host)
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(5)
        self.open -= 1
        assert isinstance(self.answer, kind)
        return self.answer


class Survey(PeerSurvey):
    """A survey in whose own host nothing is sent."""

    async def answer(self, probe: Probe) -> Probed:
        """Report nothing."""
        return Probed()


async def surveyed(folder: Path, hosts: int, answer: Probed) -> tuple[Asked, list[Check]]:
    """Return who was asked in a cluster of so many hosts, and the findings."""
    memory = Memory()
    for number in range(2, hosts + 1):
        host = Host(id=f"id{number}", name=f"h{number}")
        memory.entries[f"hosts/{host.id}"] = msgspec.json.encode(host), number
        memory.entries[f"{ALIVE}{host.id}"] = b"x;stands", number
    memory.revision = hosts
    member = Member(memory, folder, "id1")
    await member.join()
    asked = Asked(member, answer)
    survey = Survey(Namespaces(), member.hosts, lambda: view(network("vxlan")), {}, asked)
    found = await survey.checks()
    await member.replica.stop()
    return asked, found


@pytest.mark.parametrize(("hosts", "most"), [(30, 29), (1000, 80)])
def test_a_survey_asks_a_large_cluster_in_groups(tmp_path: Path, hosts: int, most: int) -> None:
    """Each host is asked once, and of a thousand some 40 at a time: all receive every question."""

    async def work() -> None:
        asked, found = await surveyed(tmp_path, hosts, Probed(carried=(Carried(WHAT, 1500, 1),)))
        assert sorted(asked.hosts) == sorted(f"id{number}" for number in range(2, hosts + 1))
        assert asked.most <= most
        told = [one.detail for one in found if one.status == "skip"]
        assert [("different groups" in one) for one in told] == [True] * (hosts > 200)

    in_virtual_time(work)


def test_what_an_agent_misses_of_other_groups_is_no_fault(tmp_path: Path) -> None:
    """An agent of the previous release knows of no groups, and misses all hosts that do not take part."""

    async def work() -> None:
        gaps = tuple(Gap(f"id{number}", WHAT, 1500, 0, "let it pass") for number in range(2, 251))
        _, found = await surveyed(tmp_path, 250, Probed(gaps=gaps, left_out=900))
        assert not [one for one in found if "more faults" in one.detail]
        # Two groups: each host misses the half of them that is in its own group.
        assert len([one for one in found if one.status == "fail"]) < 250 * 249 * 0.75

    in_virtual_time(work)


def test_a_host_expects_the_hosts_of_its_group_only(tmp_path: Path) -> None:
    """All hosts compute the same groups, and a probe without groups is for all."""
    net = network("vxlan", vni="100")
    offer = {"mac": "02:00:00:00:00:02", "address": "192.0.2.2"}
    other: dict[tuple[str, str], Peer] = {("demo", "id2"): peer(net, offer)}
    memory = Memory()
    member = Member(memory, tmp_path, "id1")

    async def work() -> None:
        await member.join()
        await member.replica.write({"hosts/id2": Host(id="id2", name="h2"), f"{ALIVE}id2": b"x;stands"})
        survey = PeerSurvey(Namespaces(), member.hosts, lambda: view(net), other, Asked(member, Probed()))
        for number in range(20):
            probe = Probe(bytes([number]) * 16, 2)
            together = probe.group("id1") == probe.group("id2")
            assert bool(survey._wanted(probe)[0]) == together
        assert survey._wanted(Probe(b"x" * 16))[0]
        await member.replica.stop()

    in_virtual_time(work)
