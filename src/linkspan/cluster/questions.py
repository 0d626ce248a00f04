"""Questions between agents, through the store: agents have no other connection to each other.

``ask/HOST/ID`` is a question to a host, and ``answer/HOST/ID`` its answer. Both have a TTL, so nothing stays if a host
ends in between. The asker removes both once it has read the answer. The questions are a closed list (``Question``), and
none of them changes anything. A host answers an invalid question with an error. An invalid answer counts as none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from linkspan.cluster.path_quality import PackedPath
from linkspan.core.errors import Invalid, LinkspanError, Unavailable
from linkspan.diagnose.doctor.peer_probe import Probe, Probed
from linkspan.diagnose.trace.live import Heard, Listen
from linkspan.diagnose.trace.parts import Entry, Part
from linkspan.store import records
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.cluster.questions")

ASK, ANSWER = "ask/", "answer/"
PATIENCE = 3.0
"""Seconds to wait for an answer."""
TTL = 10.0
MOST = 16
"""Questions that are answered at once: the others wait, and may time out."""


class Walked(msgspec.Struct, frozen=True, tag="walk"):
    """Question: how a packet continues on the asked host."""

    entry: Entry


class HealthQuestion(msgspec.Struct, frozen=True, tag="well"):
    """Question to the controller: the problems of the underlay's switches and routers."""


class HealthReply(msgspec.Struct, frozen=True, tag="standing"):
    """Answer to ``HealthQuestion``: the problems, a sentence each."""

    problems: tuple[str, ...] = ()


PATHS = 40
"""Peers in a ``PathsQuestion``: it goes through the store to every host, and so does the answer."""


class PathsQuestion(msgspec.Struct, frozen=True, tag="paths"):
    """Question to an agent: what its pings to these ``peers`` (hosts' ids) have measured."""

    peers: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=PATHS)] = ()


class PathsReply(msgspec.Struct, frozen=True, tag="measured"):
    """Answer to ``PathsQuestion``: the worst path to each of the peers, in the question's order.

    A path is None if nothing is measured. Its ``way`` counts in ``ways``, a network and a family (4 or 6) each.
    """

    paths: Annotated[tuple[PackedPath | None, ...], Meta(max_length=PATHS)]
    ways: Annotated[tuple[tuple[Annotated[str, Meta(max_length=64)], Literal[4, 6]], ...], Meta(max_length=PATHS)] = ()

    def __post_init__(self) -> None:
        """Raise ValueError, which decoding turns into Invalid, for a path of no way."""
        if any(path is not None and path.way >= len(self.ways) for path in self.paths):
            raise ValueError("a path has none of the answer's ways")


Question = Walked | Listen | Probe | HealthQuestion | PathsQuestion
Reply = Part | Heard | Probed | HealthReply | PathsReply
T = TypeVar("T", Part, Heard, Probed, HealthReply, PathsReply)


class Answer(msgspec.Struct, frozen=True):
    """An answer; if it is None, ``error`` says why."""

    told: Reply | None = None
    error: str = ""


class Ask:
    """Asks other hosts, and answers their questions by ``answer``."""

    def __init__(self, replica: Replica, host: str, answer: Callable[[Question], Awaitable[Reply]]) -> None:
        self._replica = replica
        self._host = host
        self._answer = answer
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MOST)

    async def stop(self) -> None:
        """Stop; open questions stay unanswered."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def changed(self, keys: frozenset[str]) -> None:
        """React to changed records: questions to this host, and answers to its own questions."""
        for key in keys:
            record = self._replica.records.get(key)
            if record is None:
                continue
            if key.startswith(f"{ASK}{self._host}/"):
                task = asyncio.create_task(self._reply(key, record.value))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif (waiting := self._waiting.get(key)) is not None and not waiting.done():
                with contextlib.suppress(Invalid):
                    waiting.set_result(records.parse(record.value, Answer))

    async def _reply(self, key: str, value: bytes) -> None:
        async with self._room:
            try:
                answer = Answer(await self._answer(_asked(value)))
            except LinkspanError as error:
                answer = Answer(error=error.message)
            except Exception as error:
                log.exception("question %s", key)
                answer = Answer(error=f"it failed over the question ({error!r})")
        beside = ANSWER + key.removeprefix(ASK)
        with contextlib.suppress(LinkspanError):  # the asker times out, and reports that
            await self._replica.store.transaction({beside: msgspec.json.encode(answer)}, ttl=TTL)

    async def ask(self, host: str, question: Question, kind: type[T], patience: float = PATIENCE) -> T:
        """Ask a host, and return its answer of type ``kind``; ``patience`` is in seconds.

        Raises Unavailable, with the reason alone, if the host does not answer, or answers with an error.
        """
        if self._replica.problem:
            raise Unavailable(f"the store is away ({self._replica.problem})")
        name = f"{host}/{uuid.uuid4().hex}"
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[ANSWER + name] = waiting
        taken = False
        try:
            async with asyncio.timeout(patience):
                await self._replica.store.transaction({ASK + name: msgspec.json.encode(question)}, ttl=TTL)
                taken = True
                answer = await waiting
        except TimeoutError:
            if not taken:
                raise Unavailable(f"the store is away: it did not take the question in {patience:g} s") from None
            raise Unavailable(self._silent(host, patience)) from None
        except LinkspanError as error:
            raise Unavailable(f"the store is away ({error.message})") from error
        finally:
            del self._waiting[ANSWER + name]
        with contextlib.suppress(LinkspanError):  # the TTL removes them
            await self._replica.store.transaction({}, deletes=[ASK + name, ANSWER + name])
        if not isinstance(answer.told, kind):
            raise Unavailable(answer.error or "its answer does not fit the question")
        return answer.told

    def _silent(self, host: str, patience: float) -> str:
        if self._replica.problem:
            return f"the store is away ({self._replica.problem})"
        if f"alive/{host}" not in self._replica.records:
            return "it is silent: no heartbeat of its agent for a while"
        return f"it is silent: its agent did not answer within {patience:g} s"


def _asked(value: bytes) -> Question:
    """Return a question. Raises Invalid if this version does not know it."""
    try:
        question: Question = records.parse(value, Question)
    except Invalid as error:
        raise Invalid(f"its version does not know this question ({error.message})") from error
    return question
