"""Upkeep of an etcd: compaction, defragmentation, alarms, and what is known of its space.

The problem
    etcd keeps every version of every key until somebody compacts its history. It does not do so by itself, unless it
    is told to. When a member's file reaches the quota (2 GiB by default) etcd raises the alarm NOSPACE and takes no
    writes any more, until the history is compacted, every file written again without its unused part (a
    defragmentation), and the alarm lifted. A store that nobody looks after ends so. So the agents look after it.

Who does it
    Every agent runs this, and one of them at a time acts. They agree by one record, ``upkeep/etcd``. To take the turn
    an agent writes the record, on the condition that it is still the one that the agent knows (Kubernetes' API servers
    do the same). All see the change by their watch, and wait again, each a little differently long. So there is one
    write in TURN seconds (``Pace`` has all times) however many agents there are, none in a cluster where little
    changes, and no agent whose end would stop the upkeep. Nobody's clock is compared with another's: an agent counts
    from when it saw the change.

What is compacted
    The history before the last turn's record. So between one and two TURNs of history are kept: a watch whose
    connection broke goes on where it was. One that comes later, or reads too slowly, is told by etcd that its revision
    was compacted, and its replica lists the records again (``replica``). Nothing that linkspan does needs older
    history: the question whether a store is still the one that a watch saw skips revisions that are gone (``etcd``).

An etcd that compacts itself
    An operator may have told it to (``--auto-compaction-retention``), perhaps with a longer history, which another
    program needs. etcd does not say so. But the next one to take the turn sees it: somebody has compacted past the last
    record. Then the record says that it is not ours to do, and the next turn comes after PATIENCE: etcd's own
    compaction, every hour at least, has come round by then. The first turn of all waits for PATIENCE, too: nobody knows
    yet. Where the file takes a quarter of its quota (FILLING) TURN counts, and the agents compact all the same. A
    retention above an hour is not seen in time: ``store_upkeep = "none"`` says that agents keep away.

What the setting ``store_upkeep`` allows
    ``none``     looking only.
    ``compact``  compaction too: the default. It harms nobody, and etcd asks no right for it.
    ``all``      defragmentation, and lifting NOSPACE, too. For an etcd that serves linkspan alone: the lab's own, or
                 one that an operator gave to it (with users on, ours needs role root).
    A member does not answer while it is defragmented (1.2 s for 180 MB). So only the agent that has the turn
    does it, one member at a time, the leader last; the next one comes once this one answers, knows its leader, and has
    applied what the others had; and unless the quota is full only if all members answer, so that no quorum is lost.

When it is full
    Nothing can be put, so the record cannot be the lock. Compaction itself is: of all that try to compact the same
    revision etcd lets one succeed, and to the others says that this was done. All try at different moments of a few
    seconds, and look before they ask. The one that succeeded goes on, where it may: all members, then the alarm. If it
    ends on the way, the others go on after AGAIN, and then after twice as long each time. That two do so at once is
    harmless: each looks at a member before it is defragmented, both take them in the same order, and one that has just
    been done is passed over.

    In the meantime deletes and reads work, leases that stand are kept alive, and no lease is granted. A host whose
    lease ends in this time cannot say that it lives (``absence``). Whether the store is full each agent asks the member
    that it talks to, every LOOK, because an agent that has nothing to write would not notice.

What it costs etcd (measured on 3.5.16)
    LOOK is one request of 0.2 ms for each agent, answered by a member from memory: no entry in raft's log. (The alarm
    list would be one.) WHOLE is as much for each member, and 15 ms every six hours for its quota. At 1,000 agents:
    100 and 25 requests a second, about 3 % of a core.

Rejected
    - A lease as the lock: it costs traffic all the time, and cannot be had when the store is full.
    - The revision of so many minutes ago, from each agent's memory: an agent that starts has none.
    - Defragmenting every so often: what is unused in a file is used again. It is worth a pause only where much is.
    - A read of etcd's command line from ``/debug/vars``: a configuration file or a variable says the same, unseen.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from linkspan.core.clock import now
from linkspan.core.errors import Conflict, Full, LinkspanError, Unavailable
from linkspan.core.supervise import lasting
from linkspan.store.etcd_status import (
    FILLING,
    NOSPACE,
    EtcdStatus,
    MemberStatus,
    bytes_told,
    has_room,
    next_fragmented,
)
from linkspan.store.replica import Replica

if TYPE_CHECKING:
    from linkspan.store.etcd_maintenance import Maintenance

log = logging.getLogger("linkspan.store.upkeep")

KEY = "upkeep/etcd"
"""The record by which agents agree whose turn it is."""

Allowed = Literal["none", "compact", "all"]
"""What the setting ``store_upkeep`` lets agents do."""

Compactor = Literal["", "linkspan", "other"]
OURS: Compactor = "linkspan"
OTHER: Compactor = "other"
"""Who compacts the history: the agents; or etcd itself, or another program. '' while that is not known yet."""

LONGEST = 6
"""How many times the pause between two tries to free a full store doubles: to about an hour."""

BACK = 0.05
"""The part of the quota by which a file must be below a threshold again before that is told once more."""

QUOTA_AGE = {False: 6 * 3600.0, True: 900.0}
"""Seconds for which a known quota counts; by whether the file is large, so that somebody may be giving etcd more."""


class Pace(msgspec.Struct, frozen=True):
    """How often what is done, in seconds; ``changes``: from how many on in a turn the history is compacted."""

    look: float = 10.0
    """Between two questions whether there is room. No more than the shortest ``reclaim_after``: hosts that cannot say
    that they live must not be overdue before this host knows why."""
    whole: float = 120.0
    turn: float = 300.0
    """As Kubernetes' API servers do: no watch that lives is this far behind."""
    patience: float = 7800.0
    """etcd's own compaction comes every hour, and leaves the history of an hour as a rule: that, and ten minutes."""
    full: float = 5.0
    again: float = 60.0
    recover: float = 30.0
    """For a member that was defragmented to have caught up."""
    changes: int = 1000
    """At about 400 bytes each: less than half a MB."""
    spread: float = 0.25
    """The part of a wait by which it may be longer, so that not all agents try at once."""


class Turn(msgspec.Struct, frozen=True):
    """The record of the last turn: which host took it, when (seconds since the epoch), and who compacts the history."""

    by: str = ""
    at: Annotated[float, msgspec.Meta(ge=0, le=1e11)] = 0.0
    compactor: Compactor = ""


class Upkeep:
    """Maintains an etcd, and has its status. A store of files has no ``maintenance``, and needs none."""

    def __init__(
        self,
        replica: Replica,
        maintenance: Maintenance | None,
        host: str,
        allowed: Allowed,
        tell: Callable[[str], None],
        count: Callable[[str], None],
        pace: Pace = Pace(),  # noqa: B008 - it is frozen
    ) -> None:
        """``tell`` takes what an operator should know; ``count`` takes a word for each thing done."""
        self._replica = replica
        self._maintenance = maintenance
        self._host = host
        self.allowed = allowed
        self._tell = tell
        self._count = count
        self._pace = pace
        self.etcd = EtcdStatus()
        """As it was at the last look at all members."""
        self.problem = ""
        """Why the last thing that was tried could not be done, '' if it was."""
        self.fix = ""
        self._revision = -1
        self._since = 0.0
        self._longer = 1.0
        self._looked = float("-inf")
        self._next_try = float("-inf")
        self._tries = 0
        self._was_full = False
        """Whether the store was full since the last turn."""
        self._level = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def last(self) -> Turn:
        """The record of the last turn, as this host knows it."""
        return self._replica.value(KEY, Turn) or Turn()

    def start(self) -> None:
        """Start the maintenance, if the store needs any."""
        if self._maintenance is not None:
            self._task = lasting("looking after the store", partial(self._follow, self._maintenance))

    async def stop(self) -> None:
        """Stop it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self, etcd: Maintenance) -> None:
        await asyncio.sleep(random.uniform(0, self._pace.look))  # noqa: S311 - it spreads, and hides nothing
        while True:
            try:
                await self.step(etcd)
            except Unavailable as error:  # whoever writes records tells that the store is away
                log.debug("upkeep: %s", error.message)
            await asyncio.sleep((self._pace.full if self._replica.contact.full else self._pace.look) * self._any())

    def _any(self) -> float:
        """Return the factor by which this agent waits longer than it must."""
        return 1 + random.uniform(0, self._pace.spread)  # noqa: S311 - it spreads, and hides nothing

    async def step(self, etcd: Maintenance) -> None:
        """Look, and do what is this host's to do now. Raises Unavailable if the store does not answer."""
        self._see()
        full = await self._replica.store.full()
        self._replica.note_room(full=full)
        age = now() - self._looked
        if full != self.etcd.full or age >= (self._pace.again if full else self._pace.whole):
            await self._look(etcd)
        try:
            if full:
                self._was_full = True
                await self._make_room(etcd)
            else:
                self._tries, self._next_try = 0, float("-inf")
                if self._due():
                    await self.turn(etcd)
        except Full:
            self._replica.note_room(full=True)  # a moment after the look
        except Unavailable:
            raise
        except LinkspanError as error:
            self._fail(error.message, error.hint)

    async def asked(self) -> EtcdStatus:
        """Look now, at the quotas too, for somebody who waits for it. Raises Unavailable."""
        return self.etcd if self._maintenance is None else await self._look(self._maintenance, quota_age=0)

    async def _look(self, etcd: Maintenance, quota_age: float | None = None) -> EtcdStatus:
        """Look at all members."""
        self.etcd = await etcd.status(QUOTA_AGE[self._level > 0] if quota_age is None else quota_age)
        self._looked = now()
        self._replica.note_room(full=self.etcd.full)
        self._note()
        return self.etcd

    def _note(self) -> None:
        """Report once that the file has reached a threshold, or that the store takes writes again."""
        before, level = self._level, self.etcd.level
        if level < before < 1 and self.etcd.fill > before - BACK:
            return
        self._level = level
        if level > before:
            self._tell(filling(self.etcd))
        elif before == 1:
            self._tell("the store takes writes again")

    def _fail(self, why: str, fix: str) -> None:
        if why != self.problem:
            self._tell(f"upkeep of the store: {why}; {fix}" if fix else f"upkeep of the store: {why}")
        self.problem, self.fix = why, fix

    def _done(self, what: str) -> None:
        self.problem = self.fix = ""
        self._count(what)

    def _due(self) -> bool:
        """Return whether this agent should try to take the turn now."""
        if self.allowed == "none" or not self._replica.listed:
            return False
        return not self._revision or now() - self._since >= self._period() * self._longer

    def _see(self) -> None:
        """Record the last turn, and begin to wait for the next one."""
        revision = self._replica.known_revision(KEY)
        if not revision and KEY in self._replica.records:
            return  # the records are being listed
        if revision != self._revision:
            self._revision, self._since, self._longer = revision, now(), self._any()
            self._was_full = False

    def _period(self) -> float:
        """Return after how long the next turn comes, in seconds."""
        ours = self.last.compactor == OURS or self.etcd.fill >= FILLING
        return self._pace.turn if ours else self._pace.patience

    async def turn(self, etcd: Maintenance) -> bool:
        """Take the turn, if nobody was quicker and there is something to do; tell whether it was taken."""
        known, waited = self._revision, now() - self._since
        self._since = now()
        head, written = await etcd.head()
        if written != known:
            return False
        ragged = self.allowed == "all" and next_fragmented(self.etcd, frozenset(), urgent=False) is not None
        if known and head - known < self._pace.changes and not ragged:
            return False
        compactor, filling = self.last.compactor, self.etcd.fill >= FILLING
        if known and not self._was_full:  # the agents themselves compacted it then
            if await etcd.compacted(known):
                compactor = OTHER
            elif waited >= self._pace.patience or (filling and not compactor):
                compactor = OURS
        turn = Turn(self._host, time.time(), compactor)
        if not await self._replica.store.transaction({KEY: self._replica.encoded(KEY, turn)}, unchanged={KEY: known}):
            return False
        if known and (compactor == OURS or filling) and await etcd.compact(known):
            log.info("the store's history before revision %d was compacted", known)
            self._done("compact")
        if ragged:
            await self._defragment(etcd, urgent=False)
        return True

    async def _make_room(self, etcd: Maintenance) -> None:
        """Compact, defragment and lift the alarm, as far as that is allowed: the quota is full."""
        if self.allowed == "none" or now() < self._next_try:
            return
        # Twice as long each time: where the records themselves do not fit, defragmenting is of no use.
        self._next_try = now() + self._pace.again * self._any() * 2 ** min(self._tries, LONGEST)
        self._tries += 1
        await asyncio.sleep(random.uniform(0, self._pace.full))  # noqa: S311 - it spreads, and hides nothing
        head, _ = await etcd.head()
        first = not await etcd.compacted(head - 1) and await etcd.compact(head, wait=True)
        if first:
            log.info("the store's quota is full, and its history before revision %d was compacted", head)
            self._done("compact")
        if self.allowed == "all" and (first or self._tries > 1):
            await self._defragment(etcd, urgent=True)
            await self._lift(etcd)

    async def _defragment(self, etcd: Maintenance, *, urgent: bool) -> None:
        """Defragment the members for which it is worth it, one after the other."""
        found, done = await self._look(etcd), frozenset[str]()
        while (member := next_fragmented(found, done, urgent=urgent)) is not None:
            if not urgent and len(found.answering) < len(found.members):
                return
            applied = max(one.applied for one in found.answering)
            await etcd.defragment(member)
            self._done("defragment")
            done |= {member.id}
            await self._recovered(etcd, member, applied)
            found = await self._look(etcd)
            now_is = next((one.size for one in found.answering if one.id == member.id), 0)
            sizes = f"{bytes_told(member.size)} before, {bytes_told(now_is)} now"
            self._tell(f"member {member.name} of the store was defragmented: {sizes}")

    async def _recovered(self, etcd: Maintenance, member: MemberStatus, applied: int) -> None:
        """Wait until a member has caught up with what the others had. Raises Conflict if it does not."""
        end = now() + self._pace.recover
        while not await etcd.answers(member, applied):
            if now() > end:
                raise Conflict(
                    f"store etcd {member.endpoint}: member {member.name} has not caught up "
                    f"{self._pace.recover:.0f} s after it was defragmented",
                    "look at its log, its disk and its load; the other members are left alone until it has",
                )
            await asyncio.sleep(0.1)

    async def _lift(self, etcd: Maintenance) -> None:
        """Lift NOSPACE where it would not come back at once."""
        if not has_room(self.etcd):
            worst = max(self.etcd.answering, key=lambda one: one.fill)
            self._fail(
                f"{bytes_told(worst.in_use)} of records do not fit a quota of {bytes_told(worst.limit)} with room to "
                f"spare, so the alarm on member {worst.name} stays",
                "give etcd a larger --quota-backend-bytes, and restart its members one by one",
            )
            return
        for member in [id_ for id_, kind in self.etcd.alarms if kind == NOSPACE]:
            await etcd.disarm(member)
            self._done("disarm")
        await self._look(etcd)


def filling(etcd: EtcdStatus) -> str:
    """Return a sentence for a database that fills, or is full."""
    if etcd.full:
        return "the store's quota is full: it takes no writes; `linkspan doctor` says what fills it, and what to do"
    worst = etcd.fullest
    if worst is None:
        return ""
    sizes = f"{bytes_told(worst.size)} of {bytes_told(worst.limit)} on member {worst.name}"
    return f"the store fills: {worst.fill:.0%} of its quota, {sizes}; `linkspan doctor` says why"
