"""Presence: this host's liveness record under ``alive/``, and how the other hosts learn of its end.

The record
    ``alive/HOST`` contains the agent's instance (its host's name, state folder and boot). It is a *standing* record
    (``Store.keep``): the agent puts it once, and then keeps it each second (KEEP). To keep it is no change. So a
    cluster in which nothing happens has no raft entry, no revision and no watch event from liveness, whatever its
    size. The deletion of the record is the event. A "lease" in this text is an etcd lease, which the record is tied to.

How long it takes
    A record ends LIFE (3 s) after the last keepalive, and etcd checks for ended leases every half second. Other hosts
    act after half a second of absence (ABSENCE). So all hosts know a death after 4 s at the latest while etcd has
    a leader. A lease of 4 s would make it 5 s, which is all the time that the DNS names are promised to need. If etcd's
    leader dies together with the host, the election takes 1 to 3 s more, and the new leader gives each lease its
    whole time again. etcd makes leases longer if its election timeout is above 2 s. A host that does nothing for
    2 s does not count as dead.

    Measured with etcd 3.5.16 and its default times: 24 deaths were known after 2.8 to 3.6 s. Six deaths, each
    while the leader was killed or frozen, were known after 5.5 to 6.4 s, and no live host counted as dead. With 200
    hosts each host cost etcd 0.2 ms of processor time a second (a keepalive, and a progress request of the watch every
    other second), no raft entry and no revision. So 1,000 hosts would cost a fifth of a core. Before, a host cost
    1.4 ms and three raft entries every two seconds, and an event for every other host.

Faults
    - *A member hangs or dies, perhaps the leader.* A try has one second, and then the next member is asked at once. The
      pause between two rounds is never longer than a second. From then on the member that answered is asked first.
    - *The leader was frozen and continues.* It may count leases as ended that its hosts have kept, and etcd before
      3.5.11 deletes their records. The owner sees it by its watch, and puts its record again at once (GAP is the
      shortest time between two puts). No other host has acted by then.
    - *All members are away.* Without a leader no lease ends. After their return each lease has its whole time again.
    - *The agent was stopped, suspended or cut off for longer than LIFE.* The next keepalive reports that the lease has
      ended, and the agent puts the record again with a new lease. It compares no clocks, so a clock may jump.
    - *The agent restarts while its old lease lives.* The record contains its own instance. The agent puts the record
      again, which ties it to the new lease, so the end of the old one deletes nothing.
    - *The host restarts.* Its boot is another one, so the agent waits for the end of the record of the last boot, as
      for another agent's. A machine that was copied differs from the original in nothing else. The record usually
      ended while the machine started.
    - *The agent starts while the store is away.* Liveness is unknown (``Hosts.lives`` is None). The agent puts its
      record once the store answers.
    - *Two agents use one host id.* Each finds the other's instance in the record, and reports it (``second``). They
      do not answer each other at once, but every two seconds (BEAT). An agent that starts waits until the record that
      it finds has ended. If it does not end, the other agent lives, and the new one is refused.
    - *The store takes no puts, because it is full (NOSPACE).* Keepalives work, so nothing changes for live hosts. A
      host whose lease has ended tries every five seconds (REFUSED). It does not count as dead (``store/absence.py``).
    - *A write failed.* The agent puts the record every two seconds until the store takes it. Otherwise, if nobody else
      writes for hours, ``status`` would name the old error all the time.
    - *Somebody deletes the record.* The agent puts it again at once, as after a frozen leader.
    - *Somebody else puts it.* A put without an etcd lease would let the host live for ever. So the agent puts the
      record again within two seconds, tied to its own etcd lease. An agent that starts, and finds a record of another
      agent that does not end, deletes it: an agent that lives puts it again at once.
    - *The host was removed.* The agent stops keeping its record, which then ends.

Beside the previous release
    The previous release puts its record every two seconds, each time with a new lease of 7 s, and judges others by
    the revision. Its instance lacks the boot and the mark STANDS. While a record without the mark exists, all agents
    put theirs every two seconds, too. The death of such an agent is seen after 7 s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from linkspan.cluster.hosts import Hosts
from linkspan.cluster.liveness import Liveness
from linkspan.core.clock import loop_time, now
from linkspan.core.errors import Conflict, LinkspanError, Unavailable
from linkspan.core.store_contract import LIFE
from linkspan.core.supervise import LATE, ended, lasting, until_whole, woken
from linkspan.store.records import ALIVE, EGRESS
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.cluster.presence")

KEEP = 1.0
"""Seconds between two keepalives of the record."""
GAP = 0.2
"""The least seconds between two puts, even if somebody deletes the record again and again."""
BEAT = 2.0
"""Seconds between two puts that are no answer to a loss: beside another agent with this id, or the previous release."""
BEAT_LIFE = 7.0
"""Seconds that a record of the previous release lives."""
REFUSED = 5.0
"""Seconds until a full store is asked for an etcd lease again: each request costs it raft entries."""
ALONE = 2 * BEAT + 1.0
"""Seconds without a put after which another agent with this id counts as ended: it puts its record every BEAT, and the
order of two simultaneous agents may change."""
ENDED = LIFE + 2.0
"""Seconds after which the record of an agent that ended is gone."""
ANSWERED = 2 * KEEP
"""Seconds in which an agent that lives puts its record again after somebody deleted it."""
LOOK_EVERY = 0.5
"""Seconds between two checks for that."""
STANDS = b";stands"
"""The last bytes of the instance in a standing record."""


class Namesakes(Protocol):
    """Knows whether another live agent uses this host's id."""

    second: str
    """Error text if one does, else empty."""


class Presence:
    """Keeps this host's record under ``alive/``; calls ``alone_again`` when another agent with its id has ended."""

    def __init__(
        self,
        replica: Replica,
        hosts: Hosts,
        liveness: Liveness,
        alone_again: Callable[[], Awaitable[None]],
        instance: str,
        *,
        shared: bool,
    ) -> None:
        """``instance`` distinguishes this agent, over its restarts, from another one with the same host id.

        Its last word names the boot: the previous release writes the others only.

        If the store is not ``shared``, no other host asks whether this one lives, so the record is not kept.
        """
        self.second = ""
        """Error text if another live agent uses this host id, else empty."""
        self._replica = replica
        self._hosts = hosts
        self._liveness = liveness
        self._alone_again = alone_again
        self._key = ALIVE + hosts.here.id
        self._instance = instance.encode()
        self._own_instances = (self._instance, self._instance.rpartition(b":")[0])
        """The instances in this agent's own records: those of this release and of the previous one."""
        self._own = 0
        """The revision of this agent's last put."""
        self._shared = shared
        self._beats: set[str] = set()
        """The keys of the liveness records that beat."""
        self._beating = False
        """True while an agent of the previous release lives."""
        self._put_at = float("-inf")
        self._other_at = float("-inf")
        """When the other agent with this id last put its record."""
        self._not_before = float("-inf")
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._kept: list[Callable[[float], None]] = []
        self._ended: list[Callable[[], None]] = []

    def subscribe(self, kept: Callable[[float], None], ended: Callable[[], None]) -> None:
        """Call ``kept`` when the store has kept this host's standing records or put new ones, ``ended`` if they ended.

        ``kept`` gets the time (``core.clock.now``) before that was sent. Records may end without a call of ``ended`` if
        two calls of ``kept`` are LIFE apart.
        """
        self._kept.append(kept)
        self._ended.append(ended)

    @property
    def _value(self) -> bytes:
        return self._instance + STANDS

    async def refuse_second(self) -> None:
        """Raise Conflict if another live agent uses this host id.

        The record of an agent that has ended expires, so this waits for that. A live agent of the previous release puts
        its record again.
        """
        begun, said = loop_time(), self._replica.known_revision(self._key)
        refused = "give each host an id of its own (--host-id), or stop the other one"
        while other := self._other_agent():
            if self._replica.known_revision(self._key) != said:
                raise Conflict(other, refused)
            waited, stands = loop_time() - begun, self._stands()
            if waited >= (ENDED if stands else BEAT_LIFE + BEAT):
                if stands and await self._is_answered():
                    raise Conflict(other, refused)
                break  # somebody put the record by hand, so it never ends
            await asyncio.sleep(LOOK_EVERY)
        self.second = ""  # the first listing may have had the record of an agent that has ended since

    async def _is_answered(self) -> bool:
        """Delete the other agent's record, and return whether it puts it again, as an agent that lives does at once."""
        said = self._replica.known_revision(self._key)
        await self._replica.write({}, deletes=[self._key], unchanged={self._key: said})
        end = loop_time() + ANSWERED
        while self._is_lost() or self._replica.known_revision(self._key) == said:
            if loop_time() >= end:
                return False
            await asyncio.sleep(LOOK_EVERY)
        return True

    async def start(self) -> None:
        """Put this host's liveness record, and keep it from now on."""
        self._note(ALIVE + host for host in self._hosts.alive())
        if not self._replica.problem:
            await self._say()
        self._task = lasting("saying that this host lives", self._live)

    async def stop(self) -> None:
        """Stop keeping the record; it expires unless this agent starts again soon."""
        await ended(self._task)

    def changed(self, keys: frozenset[str]) -> None:
        """React to changed keys: to the loss of this host's record, and to another agent with its id."""
        alive = [key for key in keys if key.startswith(ALIVE) and not key.startswith(EGRESS)]
        # An agent of the previous release that joins puts its liveness record first, and its host's record after it.
        alive += [key for key in self._beats if f"hosts/{key.removeprefix(ALIVE)}" in keys]
        if not alive:
            return
        self._note(alive)
        if self._key in keys:
            if other := self._other_agent():
                self.second, self._other_at = other, loop_time()
            self._wake.set()

    def _note(self, alive: Iterable[str]) -> None:
        """Note which of these liveness records, by their keys, beat as the release before does."""
        for key in alive:
            record = self._replica.records.get(key)
            if record is None or record.value.endswith(STANDS):
                self._beats.discard(key)
            else:
                self._beats.add(key)
        others = self._beats - {self._key}
        self._beating = any(f"hosts/{key.removeprefix(ALIVE)}" in self._replica.records for key in others)

    def _stands(self) -> bool:
        return self._replica.records[self._key].value.endswith(STANDS)

    def _other_agent(self) -> str:
        """Return the error text if another live agent uses this host id, '' if none does."""
        alive = self._replica.records.get(self._key)
        if alive is None or self._key in self._replica.absences:
            return ""
        if alive.value.removesuffix(STANDS) in self._own_instances:
            return ""
        where = alive.value.decode(errors="replace").partition(":")[0]
        return f"host id {self._hosts.here.id} is in use by another agent that lives, on {where}"

    async def _live(self) -> None:
        while True:
            await woken(self._wake, until_whole(KEEP if self._shared else BEAT))
            self._wake.clear()
            await asyncio.sleep(max(self._put_at + GAP - loop_time(), 0.0))
            await self._say()

    async def _say(self) -> None:
        """Keep the record, or put it again if it is gone. Raises nothing."""
        if self._hosts.removed():
            return
        sent = now()
        try:
            if not self._shared:
                if self._replica.problem and self._is_due(BEAT):  # no other write would show that the store works again
                    await self._put(sent)
                return
            kept = await self._replica.keep()
            for tell in self._kept if kept else ():
                tell(sent)
            for end in () if kept else self._ended:
                end()
            if not kept or self._is_lost():
                if not self._is_due(GAP):
                    return
                done = await self._put(sent)
                for tell in self._kept if done else ():
                    tell(sent)
            elif self._is_due(BEAT):
                await self._end_second()
                if self.second and not await self._put(sent, unchanged=True):
                    self._other_at = loop_time()
                    await self._put(sent)
                elif not self.second and (self._beating or self._replica.problem or self._is_copied()):
                    await self._put(sent)
        except LinkspanError as error:
            log.debug("alive: %s", error.message)
            return
        if self._replica.absences.full:
            self._liveness.hindered(self._hosts.here.id, sent)
            return
        self._liveness.spoke(self._hosts.here.id, sent)
        self._liveness.heard(self._hosts.ids(), self._hosts.alive(), self._replica.contact.heard)

    def _is_lost(self) -> bool:
        """Return whether the store has no record of this host."""
        return self._key not in self._replica.records or self._key in self._replica.absences

    def _is_copied(self) -> bool:
        """Return whether the record is not the one that this agent put last: it is not tied to this agent's lease."""
        record = self._replica.records.get(self._key)
        return record is not None and record.value == self._value and record.revision not in (0, self._own)

    def _is_due(self, seconds: float) -> bool:
        """Return whether the last put was at least ``seconds`` ago, and no pause because of a full store goes on."""
        at = loop_time() + LATE
        return at >= self._put_at + seconds and at >= self._not_before

    async def _end_second(self) -> None:
        """Clear ``second`` once the other agent with this id has ended."""
        if self.second and loop_time() - self._other_at >= ALONE:
            self.second = ""
            await self._alone_again()  # the other agent may have been the last to write this host's leases

    async def _put(self, sent: float, *, unchanged: bool = False) -> bool:
        """Put the record; return False if it must be ``unchanged``, and somebody else has put it meanwhile.

        ``sent`` is the time (``core.clock.now``) from which this host's silence counts. If two agents put at one
        moment, a watch may report only the last put: ``unchanged`` detects the other one.
        """
        self._put_at = loop_time()
        same = {self._key: self._replica.known_revision(self._key)} if unchanged else None
        try:
            put = await self._replica.write({self._key: self._value}, unchanged=same, standing=True)
        except Unavailable:
            if await self._replica.absences.look():
                self._not_before = loop_time() + REFUSED
                self._liveness.hindered(self._hosts.here.id, sent)
            raise
        if put:
            self._own = self._replica.known_revision(self._key)
        return put
