"""Live state of the page: read from one agent for all viewers, and sent to each as differences."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import Any

import msgspec

from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.web.agent_questions import AgentQuestions
from linkspan.web.container_list import ContainerList
from linkspan.web.view_state import Answers, State, away, difference, unknown, view

PUBLISH = 0.25
"""Seconds between two messages to a viewer, at least: four updates a second are enough for people."""
RENEW = 5.0
"""Seconds after which the state is read again without an event: other hosts' containers have no events here."""
SHARE, SHARE_OF_EVENTS = 100, 10
"""How many times as long as reading takes is the pause after it: then the agent and this program spend at most 1 %
(10 %) of a core on it.

The shortest of the last READINGS that succeeded counts: the others waited for a store or for a busy machine, and did
not work. Until there are so many, the state is read every RENEW seconds: one reading says too little."""
READINGS = 3
AGAIN = 1.0
"""Seconds until the next try if the agent does not answer."""
EVENTS = 300
"""Events that a new viewer gets."""
LISTS = "hosts", "networks", "endpoints"
"""What is read beside the status."""
QUEUE, QUEUE_BYTES = 16, 4 << 20
"""Messages that wait for one viewer, and their bytes. If there are more, it gets the whole state instead."""
VIEWERS = 64
"""Streams at a time: a browser needs one."""


def pauses(took: Collection[float]) -> tuple[float, float]:
    """Return the seconds from a reading to the next one: if an event comes, and if none does.

    ``took`` are the seconds of the last readings, at most READINGS.
    """
    least = min(took) if len(took) == READINGS else 0.0
    return max(PUBLISH, SHARE_OF_EVENTS * least), max(RENEW, SHARE * least)


class Viewer:
    """One viewer's queue of messages. ``behind``: it needs the whole state, because it is new or lost messages."""

    def __init__(self) -> None:
        self.behind = True
        self.ended = False
        self._queue: collections.deque[bytes] = collections.deque()
        self._ready = asyncio.Event()

    def put(self, message: bytes) -> None:
        """Queue a message. A viewer for which it is one too many loses all."""
        if len(self._queue) >= QUEUE or sum(map(len, self._queue)) + len(message) > QUEUE_BYTES:
            self._queue.clear()
            self.behind = True
        elif not self.behind:
            self._queue.append(message)
        self._ready.set()

    def end(self) -> None:
        """End its stream."""
        self.ended = True
        self._ready.set()

    def take(self) -> bytes:
        """Return the messages that wait, and forget them; after this the viewer is not behind."""
        found = b"".join(self._queue)
        self._queue.clear()
        self.behind = False
        return found

    async def wait(self, seconds: float) -> bool:
        """Wait for something to send; return False if nothing came in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            return False
        self._ready.clear()
        return True


class Feed:
    """Reads the state while somebody watches, and follows the agent's events.

    ``about`` is what the server knows of itself; it is part of the state.
    """

    def __init__(
        self, agent: AgentQuestions, about: Mapping[str, Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._agent = agent
        self._about = about
        self._clock = clock
        self._state = self._sent = unknown(about, "the agent has not answered yet")
        self._sent_events: collections.deque[dict[str, Any]] = collections.deque(maxlen=EVENTS)
        self._events: list[dict[str, Any]] = []
        self._last_event = 0.0
        self._lists: dict[str, list[dict[str, Any]]] = {name: [] for name in LISTS}
        self._containers = ContainerList()
        self._viewers: set[Viewer] = set()
        self._ended = False
        self._read_at = float("-inf")
        self._took: collections.deque[float] = collections.deque(maxlen=READINGS)
        self._reading = asyncio.Lock()
        self._prepared: asyncio.Task[State] | None = None
        self._watched, self._unwatched = asyncio.Event(), asyncio.Event()
        self._event_came, self._changed = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Follow the agent while somebody watches, until this is cancelled."""
        while True:
            await self._watched.wait()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one) for one in (self._follow(), self._renew(), self._publish())]
                await self._unwatched.wait()
                for task in tasks:
                    task.cancel()

    def end(self) -> None:
        """End all viewers' streams, and begin no other one."""
        self._ended = True
        for viewer in self._viewers:
            viewer.end()

    async def state(self) -> State:
        """Return the state, which is read now if nobody keeps it up to date."""
        if self._clock() - self._read_at > RENEW and not self._watched.is_set():
            await self._read(RENEW)
        return self._state

    def prepare(self) -> None:
        """Begin to read the state: a viewer comes once its browser has the page's files."""
        if self._prepared is None or self._prepared.done():
            self._prepared = asyncio.create_task(self.state())

    async def containers(self) -> ContainerList:
        """Return all containers of the cluster, as of the last reading."""
        await self.state()
        return self._containers

    async def view(self, idle: float) -> AsyncGenerator[bytes, None]:
        """Yield a viewer's messages as server-sent events, and a comment after ``idle`` seconds without one.

        Raises Unavailable if there are too many viewers, or if the streams have ended.
        """
        await self.state()
        # Both may have become true while the state was read.
        if self._ended:
            raise Unavailable("this page's server ends", "start `linkspan web` again")
        if len(self._viewers) >= VIEWERS:
            raise Unavailable(f"{VIEWERS} pages are open already", "close some of them")
        if not self._viewers:
            self._send()
        viewer = Viewer()
        self._watch(viewer)
        try:
            while not viewer.ended:
                if viewer.behind:
                    viewer.take()
                    whole = {"state": self._sent, "events": [*self._sent_events]}
                    yield b"event: state\ndata: " + msgspec.json.encode(whole) + b"\n\n"
                elif messages := viewer.take():
                    yield messages
                elif not await viewer.wait(idle):
                    yield b": still here\n\n"
        finally:
            self._unwatch(viewer)

    def _watch(self, viewer: Viewer) -> None:
        self._viewers.add(viewer)
        self._unwatched.clear()
        self._watched.set()

    def _unwatch(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        if not self._viewers:
            self._watched.clear()
            self._unwatched.set()

    async def _follow(self) -> None:
        """Take in the agent's events, from where the last stream ended."""
        while True:
            try:
                async for event in self._agent.events(EVENTS, self._last_event):
                    if event in self._sent_events or event in self._events:
                        continue  # the new stream repeats the last one's end
                    self._last_event = event["at"]
                    self._events.append(event)
                    self._event_came.set()
                    self._changed.set()
            except LinkspanError as error:
                self._set(away(self._state, error.message))
            await asyncio.sleep(AGAIN)
            self._event_came.set()  # the agent may be back, with another state

    async def _renew(self) -> None:
        """Read the state after an event, and from time to time."""
        older = RENEW  # the first viewer has read it; what happened since then comes as an event
        while True:
            self._event_came.clear()
            await self._read(older)
            older = 0.0
            soon, late = pauses(self._took)
            await asyncio.sleep(soon)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(late - soon):
                    await self._event_came.wait()

    async def _read(self, older: float = 0.0) -> None:
        """Read the state, unless somebody has done it ``older`` seconds ago or later."""
        async with self._reading:
            begun = self._clock()
            if begun - self._read_at < older:
                return
            problems, known = [], self._lists["endpoints"]
            try:
                status = await self._agent.get("/v1/status")
                for name in LISTS:
                    if name == "endpoints" and self._lists[name] and not status["store"]["ok"]:
                        problems.append("other hosts' containers may be out of date: the store does not answer")
                        continue  # the agent would wait for its store
                    try:
                        self._lists[name] = await self._agent.list(f"/v1/{name}")
                    except LinkspanError as error:
                        problems.append(f"{name} may be out of date: {error.message}")
                if self._lists["endpoints"] is not known:
                    self._containers = ContainerList(self._lists["endpoints"])
                answers = Answers(status=status, **self._lists, problems=problems)
                self._set(await asyncio.to_thread(view, answers, self._about))  # 0.1 s with 100,000 containers
                self._took.append(self._clock() - begun)
            except LinkspanError as error:
                self._set(away(self._state, error.message))
            self._read_at = self._clock()

    def _set(self, state: State) -> None:
        self._state = state
        self._changed.set()

    async def _publish(self) -> None:
        """Send what has changed, at most every PUBLISH seconds."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._send()
            await asyncio.sleep(PUBLISH)

    def _send(self) -> None:
        """Send the difference from what was sent last to all viewers."""
        change, events = difference(self._sent, self._state), self._events
        self._sent, self._events = self._state, []
        self._sent_events += events
        if change or events:
            told = b"event: change\ndata: " + msgspec.json.encode({"change": change, "events": events}) + b"\n\n"
            for viewer in self._viewers:
                viewer.put(told)
