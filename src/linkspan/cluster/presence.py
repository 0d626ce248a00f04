"""Presence: this host's record of liveness under ``alive/``, and what the other hosts conclude from it.

The record
    ``alive/HOST`` holds the agent's instance (its host's name and state folder). It *stands* in the store
    (``Store.keep``): the agent puts it once, and then keeps it each second (KEEP). To keep it is no change. So a
    cluster in which nothing happens has no raft entry, no revision and no watch event from liveness, whatever its
    size. The deletion of the record is the event.

How long it takes
    A record ends LIFE (3 s) after the last time that it was kept, and etcd looks for ends every half second. Other
    hosts act after half a second of absence (ABSENCE). So a death is known everywhere 4 s after it at the latest
    while etcd has a leader. A lease of 4 s would make it 5 s, and leave nothing of the 5 s that are promised for the
    names' servers. If the leader dies with the host, 1 to 3 s for the election come before that, and the new leader
    gives each lease its whole time again. etcd makes leases longer where its election timeout is above 2 s.
    A host is not taken for dead by what it does not do for 2 s.

    Measured with etcd 3.5.16 and its own times: 24 deaths were known after 2.8 to 3.6 s. Six deaths at whose moment the
    leader was killed or frozen were known after 5.5 to 6.4 s, and nobody else was taken for dead. 200 hosts cost etcd
    0.2 ms of processor time a host each second (a keepalive, and half a question whether the watch lives), no raft
    entry and no revision. So 1,000 hosts would cost a fifth of a core. Before, a host cost 1.4 ms and three raft
    entries each two seconds, and an event for every other host.

Faults
    - *A member hangs or dies, the leader too.* A try has one second, and then the next member is asked at once; the
      pause between two rounds is never longer than a second. The member that answered is asked first from then on.
    - *A leader was frozen, and goes on.* It may take leases for ended that it should know better of, and etcd before
      3.5.11 deletes their records. The owner sees it by its watch, and puts its record again at once (GAP is the
      shortest time between two puts). Nobody else has acted by then.
    - *All members are away.* No leader, no end. After their return each lease has its whole time again.
    - *The agent was stopped, suspended or cut off for longer than LIFE.* The next keepalive says that the lease has
      ended, and the record is put again with a new one. No clock is asked: a clock that jumps changes nothing.
    - *The agent begins again while its old lease lives.* The record has its own instance in it. It puts the record
      again, which ties it to the new lease; the end of the old one takes nothing away.
    - *The agent begins without a store.* Nobody is known to live or not (``Leases.lives`` is None). It puts its record
      once the store answers.
    - *Two agents live by one host id.* Each finds the other's instance in the record, and says so (``second``). They
      do not answer each other at once, but every two seconds (BEAT). An agent that starts waits until the record that
      it finds has ended; if it does not end, the other agent lives, and the new one is refused.
    - *The store takes nothing, because it is full (NOSPACE).* Keepalives go on, so nothing changes for hosts that are
      there. A host whose lease has ended tries every five seconds (REFUSED). The others do not take it for dead
      (``store/absence.py``).
    - *A write failed.* The record is put again every two seconds until the store takes it: nobody else may write for
      hours, and ``status`` is not to name an error that is over.
    - *Somebody deletes the record.* As with the leader: it is put again at once.
    - *The host was removed.* Its record is kept no more, and ends.

Beside the release before
    That one puts its record every two seconds, each time with a new lease of 7 s, and judges others by the revision.
    Its instance lacks the mark STANDS. While a record without the mark lives, all agents put theirs every two seconds,
    too. Its own end is seen after 7 s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from linkspan.cluster.leases import Leases
from linkspan.cluster.liveness import Silence
from linkspan.core.clock import now
from linkspan.core.contracts import LIFE
from linkspan.core.errors import Conflict, LinkspanError, Unavailable
from linkspan.core.supervise import LATE, lasting, until_whole, woken
from linkspan.diagnose.trace.parts import CONTROLLER
from linkspan.store.contact import ALIVE
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.cluster.presence")

KEEP = 1.0
"""Seconds between two times that the record is kept."""
GAP = 0.2
"""The least seconds between two puts: whoever deletes the record again and again is answered five times a second."""
BEAT = 2.0
"""Seconds between two puts that are no answer to a loss: beside another agent of this id, or the release before."""
BEAT_LIFE = 7.0
"""Seconds that a record of the release before lives."""
REFUSED = 5.0
"""Seconds until a full store is asked for a lease again: each time costs it raft entries."""
ALONE = 2 * BEAT + 1.0
"""Seconds after which another agent by this id that has not put its record again has ended: it does so every BEAT, and
two that began at one moment may change their order."""
ENDED = LIFE + 2.0
"""Seconds in which the record of an agent that has ended is gone."""
LOOK_EVERY = 0.5
"""Seconds between two looks whether it is."""
STANDS = b";stands"
"""The end of an instance whose record stands, and is not put again and again."""


class Presence:
    """Keeps this host's record under ``alive/``; calls ``alone_again`` when another agent with its id has ended."""

    def __init__(
        self,
        replica: Replica,
        leases: Leases,
        silence: Silence,
        alone_again: Callable[[], Awaitable[None]],
        instance: str,
        *,
        shared: bool,
    ) -> None:
        """``instance`` tells this agent, over restarts, from another one with the same host id.

        In a store that is not ``shared`` nobody asks whether this host lives, and the disk is left alone.
        """
        self.second = ""
        """Error text if another live agent uses this host id, else empty."""
        self._replica = replica
        self._leases = leases
        self._silence = silence
        self._alone_again = alone_again
        self._key = ALIVE + leases.host.id
        self._instance = instance.encode()
        self._shared = shared
        self._beating = False
        """Whether an agent of the release before lives."""
        self._put_at = float("-inf")
        self._other_at = float("-inf")
        """When the other agent by this id last put its record."""
        self._not_before = float("-inf")
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def refuse_second(self) -> None:
        """Raise Conflict if another live agent uses this host id.

        The record of an agent that has ended expires: wait for that. A live agent of the release before puts its record
        again.
        """
        begun, said = _clock(), self._replica.known_revision(self._key)
        refused = "give each host an id of its own (--host-id), or stop the other one"
        while other := self._other_agent():
            if self._replica.known_revision(self._key) != said:
                raise Conflict(other, refused)
            waited, stands = _clock() - begun, self._stands()
            if waited >= (ENDED if stands else BEAT_LIFE + BEAT):
                if stands:
                    raise Conflict(other, refused)
                break  # somebody put it by hand: it never ends
            await asyncio.sleep(LOOK_EVERY)
        self.second = ""  # the first listing may have told of an agent that has ended since

    async def start(self) -> None:
        """Put this host's record, and keep it from now on."""
        self._beating = self._has_beating()
        if not self._replica.problem:
            await self._say()
        self._task = lasting("saying that this host lives", self._live)

    async def stop(self) -> None:
        """Stop; the record expires unless this agent starts again soon."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def changed(self, keys: frozenset[str]) -> None:
        """Record changed keys."""
        if not any(key.startswith(ALIVE) for key in keys):
            return
        self._beating = self._has_beating()
        if self._key in keys:
            if other := self._other_agent():
                self.second, self._other_at = other, _clock()
            self._wake.set()

    def _has_beating(self) -> bool:
        records = self._replica.under(ALIVE)
        ours = {self._key, ALIVE + CONTROLLER}
        return any(not record.value.endswith(STANDS) for key, record in records.items() if key not in ours)

    def _stands(self) -> bool:
        return self._replica.records[self._key].value.endswith(STANDS)

    def _other_agent(self) -> str:
        """Return the error text if another live agent uses this host id, '' if none does."""
        alive = self._replica.records.get(self._key)
        if alive is None or self._key in self._replica.absences:
            return ""
        if alive.value.removesuffix(STANDS) == self._instance:
            return ""
        where = alive.value.decode(errors="replace").partition(":")[0]
        return f"host id {self._leases.host.id} is in use by another agent that lives, on {where}"

    async def _live(self) -> None:
        while True:
            await woken(self._wake, until_whole(KEEP if self._shared else BEAT))
            self._wake.clear()
            await asyncio.sleep(max(self._put_at + GAP - _clock(), 0.0))
            await self._say()

    async def _say(self) -> None:
        """Keep the record, or put it."""
        if self._leases.removed():
            return
        sent = now()
        try:
            if not self._shared:
                if self._replica.problem and self._is_due(BEAT):  # nobody else writes, and it may be well again
                    await self._put(sent)
                return
            kept = await self._replica.keep()
            if not kept or self._is_lost():
                if not self._is_due(GAP):
                    return
                await self._put(sent)
            elif self._is_due(BEAT):
                await self._end_second()
                if self.second and not await self._put(sent, unchanged=True):
                    self._other_at = _clock()
                    await self._put(sent)
                elif not self.second and (self._beating or self._replica.problem):
                    await self._put(sent)
        except LinkspanError as error:
            log.debug("alive: %s", error.message)
            return
        if self._replica.absences.full:
            self._silence.hindered(self._leases.host.id, sent)
            return
        self._silence.spoke(self._leases.host.id, sent)
        self._silence.heard(set(self._leases.hosts()), self._leases.alive(), self._replica.contact.heard)

    def _is_lost(self) -> bool:
        """Return whether the store has no record of this host."""
        return self._key not in self._replica.records or self._key in self._replica.absences

    def _is_due(self, seconds: float) -> bool:
        """Return whether the last put was so long ago, and the pause after a full store is over."""
        at = _clock() + LATE
        return at >= self._put_at + seconds and at >= self._not_before

    async def _end_second(self) -> None:
        """Clear ``second`` once the other agent with this id has ended."""
        if self.second and _clock() - self._other_at >= ALONE:
            self.second = ""
            await self._alone_again()  # it may have been the last to write this host's leases

    async def _put(self, sent: float, *, unchanged: bool = False) -> bool:
        """Put the record; return whether that was done: not if it must be ``unchanged``, and somebody else has put it.

        A watch tells the last of several changes, so of two agents that put at one moment it may tell one alone.
        """
        self._put_at = _clock()
        same = {self._key: self._replica.known_revision(self._key)} if unchanged else None
        try:
            return await self._replica.write({self._key: self._instance + STANDS}, unchanged=same, standing=True)
        except Unavailable:
            if await self._replica.absences.look():
                self._not_before = _clock() + REFUSED
                self._silence.hindered(self._leases.host.id, sent)
            raise


def _clock() -> float:
    """Return the time for pauses, in seconds."""
    return asyncio.get_running_loop().time()
