"""Log of refused connections: the packets that rules of policies refuse, each with the policy, its line and both ends.

The rules log to a group of nflog, at most 20 packets a second. The agent listens only while somebody follows, or always
by the setting `log_drops`. A packet does not say which rule refused it: the judge says that, who knows the same
policies.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import Iterator

import msgspec

from linkspan.agent.policy_enforcement import Enforcement
from linkspan.agent.policy_flows import Flows, Parties, port_text
from linkspan.core.errors import KernelError, Unavailable
from linkspan.core.supervise import ended, lasting
from linkspan.kernel.probe.nflog import Logged, Nflog
from linkspan.policy import rules
from linkspan.policy.judge import By

log = logging.getLogger("linkspan.agent.drop_log")

KEPT = 1000
AGAIN = 30.0
"""Seconds until an agent that always listens tries again, if it could not begin."""

_FIELDS = {"source": "from", "source_address": "from_address", "target": "to", "target_address": "to_address"}


class Drop(msgspec.Struct, frozen=True, kw_only=True, rename=_FIELDS):
    """A packet that policies refused, or (``staged``) would refuse.

    ``at`` is in seconds since the epoch. ``source`` and ``target`` are names of containers, or the addresses again.
    ``by`` is None if the policies changed in the meantime.
    """

    at: float
    staged: bool
    source: str
    source_address: str
    target: str
    target_address: str
    port: str
    by: By | None


def _drop(one: Logged, at: float, flows: Flows, *, staged: bool) -> Drop:
    """Return a logged packet as people see it."""
    verdict = flows.refusal_at_host(one.flow) if one.to_host else flows.refusal(one.flow)
    source, target = flows.names(one.flow, to_host=one.to_host)
    return Drop(
        at=at,
        staged=staged,
        source=source,
        source_address=one.flow.source.address,
        target=target,
        target_address=one.flow.target.address,
        port=port_text(one.flow),
        by=verdict.by if verdict else None,
    )


class DropLog:
    """Keeps the last KEPT drops, and gives new ones to followers."""

    def __init__(self, enforcement: Enforcement, parties: Parties, *, always: bool) -> None:
        self._enforcement = enforcement
        self._parties = parties
        self._always = always
        self._kept: collections.deque[Drop] = collections.deque(maxlen=KEPT)
        self._followers: set[asyncio.Queue[Drop | None]] = set()
        self._nflog: Nflog | None = None
        self._task: asyncio.Task[None] | None = None
        self._problem = ""

    def start(self) -> None:
        """Begin to listen, if the setting says so; if it cannot, try again and again."""
        if self._always:
            self._task = lasting("logging refused connections", self._begin)

    async def _begin(self) -> None:
        while self._nflog is None:
            try:
                self._listen()
            except Unavailable as error:
                if not self._problem:
                    log.warning("%s", error.told)
                self._problem = error.told
                await asyncio.sleep(AGAIN)
        self._problem = ""

    def problems(self) -> list[str]:
        """Return why the agent does not listen, though the setting says that it always does."""
        return [self._problem] if self._problem else []

    async def stop(self) -> None:
        """Stop listening."""
        await ended(self._task)
        self._always = False
        self._followers.clear()
        self._rest()

    def kept(self) -> list[Drop]:
        """Return the last drops that were seen, oldest first."""
        return list(self._kept)

    def end(self) -> None:
        """Tell all followers that this was the last drop: an agent that ends would wait for them."""
        for follower in self._followers:
            if follower.full():
                follower.get_nowait()
            follower.put_nowait(None)

    @contextlib.contextmanager
    def following(self) -> Iterator[asyncio.Queue[Drop | None]]:
        """Return a queue that gets new drops while the block lasts, and None after the last one. Raises Unavailable."""
        queue: asyncio.Queue[Drop | None] = asyncio.Queue(KEPT)
        self._listen()
        self._followers.add(queue)
        try:
            yield queue
        finally:
            self._followers.discard(queue)
            self._rest()

    def _listen(self) -> None:
        if self._nflog is not None:
            return
        try:
            self._nflog = Nflog(rules.GROUP)
        except KernelError as error:
            raise Unavailable(
                f"refused connections cannot be logged: {error.message}",
                f"end the program that listens to nflog group {rules.GROUP}, or load the module nfnetlink_log",
            ) from error
        asyncio.get_running_loop().add_reader(self._nflog.fileno(), self._read)

    def _rest(self) -> None:
        if self._nflog is not None and not self._always and not self._followers:
            asyncio.get_running_loop().remove_reader(self._nflog.fileno())
            self._nflog.close()
            self._nflog = None

    def _read(self) -> None:
        assert self._nflog is not None
        packets = list(self._nflog.read())
        regime, now = self._enforcement.regime, time.time()
        for staged, judge in ((False, regime.judge), (True, regime.trial)):
            wanted = rules.STAGED if staged else rules.ENFORCED
            if mine := [one for one in packets if one.prefix == wanted]:
                flows = self._parties.flows(judge)
                for one in mine:
                    self._add(_drop(one, now, flows, staged=staged))

    def _add(self, drop: Drop) -> None:
        self._kept.append(drop)
        for follower in self._followers:
            if not follower.full():  # who reads too slowly loses some, so that the agent's memory stays bounded
                follower.put_nowait(drop)
