"""Traces over the whole cluster: walks this host's parts in a thread, and asks the other agents for theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from linkspan.agent.trace_map import TraceMap
from linkspan.cluster.questions import Ask, Walked
from linkspan.core.errors import Unavailable
from linkspan.core.model import CONTROLLER
from linkspan.diagnose.trace import live
from linkspan.diagnose.trace.bgp_routes import Learning
from linkspan.diagnose.trace.capture import pcapng
from linkspan.diagnose.trace.hops import Map
from linkspan.diagnose.trace.live import Heard, Listen
from linkspan.diagnose.trace.live_packet import new_mark
from linkspan.diagnose.trace.packet import Packet
from linkspan.diagnose.trace.parts import Entry, Part
from linkspan.diagnose.trace.trace import Place, Trace, Unanswered, trace
from linkspan.kernel.io.namespaces import Namespaces

if TYPE_CHECKING:
    from linkspan.diagnose.trace.result import Local


class Walk(NamedTuple):
    """A trace by questions alone, and what a real packet needs: ``silent`` hosts did not answer."""

    known: Map
    source: Place
    target: Place
    packet: Packet
    found: Trace
    silent: frozenset[str]


class ClusterTrace:
    """Makes traces for this host's users, and parts of traces for other hosts."""

    def __init__(
        self,
        namespaces: Namespaces,
        state_dir: Path,
        trace_map: TraceMap,
        learning: Callable[[], Learning | None],
        alive: Callable[[], Collection[str]],
        ask: Ask,
    ) -> None:
        """``alive`` returns the ids of the hosts that live, and of an active controller."""
        self._namespaces = namespaces
        self._state_dir = state_dir
        self._map = trace_map
        self._learning = learning
        self._alive = alive
        self._ask = ask

    def _local(self, known: Map) -> Local:
        from linkspan.diagnose.trace.result import Local  # 0.3 MB with the walk, for few

        return Local(self._namespaces, known, self._state_dir, self._learning())

    async def answer(self, question: Walked | Listen) -> Part | Heard:
        """Return this host's part of a trace that another host makes."""
        if isinstance(question, Listen):
            return await asyncio.to_thread(self._local(await self._map.known()).hear, question)
        local = self._local(await self._map.known(*self._map.strange(question.entry.packet)))
        return await asyncio.to_thread(local.part, question.entry)

    async def trace(self, source: str, target: str, to: str = "", *, alive: bool = False) -> Trace:
        """Trace between two ends anywhere; ``alive`` adds a real packet.

        Raises NotFound, Conflict or Invalid if the arguments do not say what to trace.
        """
        walk = await self._walk(source, target, to)
        return _marked(walk, await self._live(walk)) if alive else walk.found

    async def capture(self, source: str, target: str, to: str = "") -> tuple[Trace, bytes]:
        """Trace with a real packet, and return also a pcapng file of what every device of the path saw of it.

        Raises as ``trace`` does.
        """
        walk = await self._walk(source, target, to)
        heard = await self._live(walk, capture=True)
        found = _marked(walk, heard)
        frames = {host: one.frames for host, one in heard.items()}
        return found, await asyncio.to_thread(pcapng, found.hops, found.reply_hops, frames)

    async def _walk(self, source: str, target: str, to: str) -> Walk:
        known = await self._map.known(source, target)
        local = self._local(known)
        first, last, packet = await asyncio.to_thread(local.begin, source, target, to)
        going = trace(known, first, last, packet)
        silent = set()
        answer: Part | Unanswered | None = None
        while True:
            try:
                host, entry = going.send(answer) if answer is not None else next(going)
            except StopIteration as end:
                found: Trace = end.value
                break
            answer = await self._part(local, host, entry)
            if isinstance(answer, Unanswered):
                silent.add(host)
        return Walk(known, first, last, packet, found, frozenset(silent))

    async def _live(self, walk: Walk, *, capture: bool = False) -> dict[str, Heard]:
        """Send an echo request or a TCP SYN, and return what each host saw; ``silent`` ones are not asked."""
        known, source, target, packet, found, silent = walk
        mark, goal = new_mark(), live.goal(known, target)

        def wanted_of(host: str) -> Listen:
            wanted = live.listening(found, goal, host, mark, packet.protocol)
            return msgspec.structs.replace(wanted, capture=capture)

        asked = []
        for id_, other in known.others.items():
            if id_ in silent:
                continue
            wanted = wanted_of(other.name)
            if wanted.there or wanted.back:
                asked.append(asyncio.create_task(self._heard(id_, other.name, wanted)))

        def going() -> bool:
            return not all(task.done() for task in asked)

        try:
            local, size, here = self._local(known), live.unproven(found), wanted_of(known.host)
            own = await asyncio.to_thread(local.send, source, packet, here, live.end(found), going, size)
            heard = dict(await asyncio.gather(*asked))
        finally:
            for task in asked:
                task.cancel()
        return {known.host: own, **heard}

    async def _heard(self, host: str, name: str, wanted: Listen) -> tuple[str, Heard]:
        try:
            return name, await self._ask.ask(host, wanted, Heard, live.HEARING)
        except Unavailable:
            return name, Heard()

    async def _part(self, local: Local, host: str, entry: Entry) -> Part | Unanswered:
        if not host:
            return await asyncio.to_thread(local.part, entry)
        if host == CONTROLLER and host not in self._alive():
            return Unanswered("no controller is active, and only the controller knows the switches")
        try:
            return await self._ask.ask(host, Walked(entry), Part)
        except Unavailable as error:
            return Unanswered(error.message)


def _marked(walk: Walk, heard: dict[str, Heard]) -> Trace:
    """Return the trace as the packet decides it."""
    return live.marked(walk.found, heard, walk.known.host, live.goal(walk.known, walk.target))
