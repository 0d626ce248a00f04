"""Agents ask each other through the store: answers, silence, and what is no question."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster.questions import ANSWER, ASK, Answer, Ask, Question, Walked
from linkspan.core.errors import NotFound, Unavailable
from linkspan.core.wire import VXLAN
from linkspan.diagnose.trace.hops import Hop, Translation
from linkspan.diagnose.trace.packet import Outer, Packet
from linkspan.diagnose.trace.parts import Entry, Part
from linkspan.store.memory import Memory
from support.polling import eventually
from support.records.replicas import Member, together

PACKET = Packet(bytes([10, 244, 1, 2]), bytes([10, 244, 2, 2]), "tcp", 80)
OUTER = Outer(VXLAN, bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]), 4789, 7, b"\2\0\0\0\0\1", b"\2\0\0\0\0\2")
QUESTION = Walked(Entry(PACKET, at=OUTER.target, outer=OUTER))


class Asker:
    """A host that asks and is asked: it answers that the packet has left again, as it came."""

    def __init__(self, memory: Memory, folder: Path, name: str) -> None:
        self.member = Member(memory, folder, name)
        self.replica = self.member.replica
        self.asked: list[Question] = []
        self.ask = Ask(self.replica, name, self._answer)
        self.member.told = self.ask.changed

    async def _answer(self, question: Question) -> Part:
        self.asked.append(question)
        assert isinstance(question, Walked)
        entry = question.entry
        if entry.device == "unknown":
            raise NotFound("link unknown does not exist")
        hop = Hop("h2", "host", "eth0", "left", "again")
        return Part((hop,), 1450, -1, "eth0", Translation(arrived=PACKET), PACKET, "h1", b"at", entry.outer)

    async def stop(self) -> None:
        """End."""
        await self.ask.stop()
        await self.replica.stop()


def _left(memory: Memory) -> list[str]:
    return [key for key, (value, _) in memory.entries.items() if value is not None and key.startswith((ASK, ANSWER))]


def test_a_question_is_answered_and_leaves_nothing(tmp_path: Path) -> None:
    """Question and answer arrive unchanged, and both records are removed."""

    async def work() -> None:
        memory = Memory()
        one, two, third = (Asker(memory, tmp_path, name) for name in ("h1", "h2", "h3"))
        await asyncio.gather(*(asker.replica.start() for asker in (one, two, third)))
        found = await one.ask.ask("h2", QUESTION, Part)
        assert (found.outer, found.packet, found.translation.arrived) == (OUTER, PACKET, PACKET)
        assert two.asked == [QUESTION]
        assert third.asked == []
        assert _left(memory) == []
        assert not [key for key in memory.entries if key.startswith("gone/")]
        await asyncio.gather(*(asker.stop() for asker in (one, two, third)))

    together(work)


def test_many_questions_at_once_get_their_own_answers(tmp_path: Path) -> None:
    """A hundred questions, both ways."""

    async def work() -> None:
        memory = Memory()
        one, two = Asker(memory, tmp_path, "h1"), Asker(memory, tmp_path, "h2")
        await asyncio.gather(one.replica.start(), two.replica.start())
        outers = [msgspec.structs.replace(OUTER, vni=n) for n in range(100)]
        asked = [Walked(Entry(PACKET, at=b"at", outer=outer)) for outer in outers]
        found = await asyncio.gather(
            *((one if n % 2 else two).ask.ask("h2" if n % 2 else "h1", q, Part) for n, q in enumerate(asked))
        )
        assert [part.outer for part in found] == outers
        await asyncio.gather(one.stop(), two.stop())

    together(work)


@pytest.mark.parametrize(("alive", "words"), [(False, "no heartbeat"), (True, "did not answer within 0.05 s")])
def test_a_silent_host_is_told_from_one_that_lives_and_does_not_answer(
    tmp_path: Path, alive: bool, words: str
) -> None:
    """Nobody takes the question: the asker says why, within the time it was given; the TTL takes the record away."""

    async def work() -> None:
        one = Asker(Memory(), tmp_path, "h1")
        await one.replica.start()
        if alive:
            await one.replica.write({"alive/h2": b"x"})
        with pytest.raises(Unavailable, match=words):
            await one.ask.ask("h2", QUESTION, Part, patience=0.05)
        await one.stop()

    together(work)


def test_a_store_that_is_away_is_named(tmp_path: Path) -> None:
    """Asking does not wait for it."""

    async def work() -> None:
        one = Asker(Memory(), tmp_path, "h1")
        await one.replica.start()
        one.member.store.cut()
        with pytest.raises(Unavailable, match=r"the store is away.*cut"):
            await one.ask.ask("h2", QUESTION, Part)
        await one.stop()

    together(work)


def test_what_cannot_be_answered_is_answered_with_the_reason(tmp_path: Path) -> None:
    """An error of the host's, and a question that it does not know."""

    async def work() -> None:
        memory = Memory()
        one, two = Asker(memory, tmp_path, "h1"), Asker(memory, tmp_path, "h2")
        await asyncio.gather(one.replica.start(), two.replica.start())
        with pytest.raises(Unavailable, match="link unknown does not exist"):
            await one.ask.ask("h2", Walked(Entry(PACKET, device="unknown")), Part)
        for garbage in (b"{}", b'{"type":"reboot"}', b"\xff", b'{"type":"walk","entry":7}'):
            await one.replica.write({f"{ASK}h2/x": garbage})
            await eventually(lambda: f"{ANSWER}h2/x" in one.replica.records, "an answer")
            answer = msgspec.json.decode(one.replica.records[f"{ANSWER}h2/x"].value, type=Answer)
            assert "does not know this question" in answer.error
            await one.replica.write({}, deletes=[f"{ASK}h2/x", f"{ANSWER}h2/x"])
            await eventually(lambda: not {k for k in two.replica.records if k.endswith("/x")}, "both are gone")
        assert two.asked == [Walked(Entry(PACKET, device="unknown"))]
        await asyncio.gather(one.stop(), two.stop())

    together(work)
