"""Upkeep of an etcd: compaction, defragmentation, alarms, and the status of its space.

The problem
    etcd keeps every version of every key until somebody compacts its history. By default it does not compact by itself.
    When a member's file reaches the quota (2 GiB by default) etcd raises the alarm NOSPACE and takes no more writes.
    Three things end that: a compaction of the history, a defragmentation of every file (it is written again without
    its unused part), and lifting the alarm. Every etcd without maintenance ends there. So the agents maintain it.

Who does it
    Every agent runs this, and one at a time acts. They agree by one record, ``upkeep/etcd``. An agent takes the turn by
    writing the record, on the condition that nobody has changed it since the agent read it (Kubernetes' API servers
    do the same). All agents see the change by their watch and wait again, each for a slightly different time. So
    there is one write in TURN seconds (``Pace`` has all times), however many agents there are, and none in a cluster
    in which little changes. No single agent is needed for it. No two hosts' clocks are compared: an agent counts from
    when it saw the change.

What is compacted
    The history before the last turn's record. So between one and two TURNs of history are kept, and a watch whose
    connection broke continues where it was. If a watch comes later, or reads too slowly, etcd refuses it because its
    revision was compacted, and the replica lists the records again (``replica``). linkspan needs no older history: the
    check that a store is still the one that a watch saw skips compacted revisions (``etcd``).

An etcd that compacts itself
    An operator may have configured that (``--auto-compaction-retention``), perhaps with a longer history, which
    another program needs. etcd does not report the setting. But the next agent to take the turn sees that somebody
    has compacted past the last record. Then it writes ``other`` into the record, and the next turn comes after
    PATIENCE: etcd's own compaction, at least every hour, has come by then. The very first turn waits for PATIENCE
    too, because nobody knows yet. Once the file takes a quarter of its quota (FILLING) the agents compact after TURN
    in any case. They do not notice a retention above an hour in time: for that, set ``store_upkeep`` to ``none``.

What the setting ``store_upkeep`` allows
    ``none``     only the status.
    ``compact``  compaction too: the default. It harms nobody, and etcd demands no right for it.
    ``all``      defragmentation, and lifting NOSPACE, too. For an etcd that serves linkspan alone: the lab's own, or
                 one that an operator dedicated to it (if etcd has users, linkspan's needs role root).
    In an etcd that linkspan runs itself, ``compact`` means ``all``, and the voters' agents alone do it: only they can
    log in as root. If clients took turns as well, a voter's turn would rarely come, and nobody would defragment.

    A member does not answer while it is defragmented (1.2 s for 180 MB). So only the agent that has the turn does it,
    one member at a time, the leader last. The next member follows once this one answers, knows its leader, and has
    applied what the others had. Unless the quota is full, all members must answer, so that no quorum is lost.

When it is full
    etcd takes no puts, so the record cannot be the lock. The compaction is the lock: if several agents compact the same
    revision, etcd lets one succeed and refuses the others. The agents try at different moments within a few
    seconds, and first ask whether the revision is compacted. The one that succeeded continues, if the setting allows
    it: it defragments all members, then lifts the alarm. If it ends meanwhile, the others continue after AGAIN, and
    then after twice as long each time. An etcd that somebody else compacts is left alone then, too, unless the
    setting is ``all``. Two agents at once do no harm: each reads a member's status before it
    defragments it, both take the members in the same order, and both skip one that has just been done.

    Meanwhile deletes and reads work, and etcd renews its leases but grants no new ones. A host whose etcd lease ends
    then cannot put its liveness record (``absence``). Each agent asks its member every LOOK whether the store is full,
    because an agent that has nothing to write would not notice.

What it costs etcd (measured on 3.5.16)
    LOOK is one request of 0.2 ms for each agent, which the member answers from memory, without an entry in raft's log.
    (The list of alarms would cost one.) WHOLE is one such request for each member, and 15 ms every six hours for its
    quota. At 1,000 agents these are 100 and 25 requests a second, about 3 % of a core.

Rejected
    - An etcd lease as the lock: it costs traffic all the time, and etcd grants none when it is full.
    - The revision of some minutes ago, from each agent's memory: an agent that starts has none.
    - Defragmentation at fixed times: etcd uses unused space again. The pause is worth it only if much is unused.
    - etcd's command line from ``/debug/vars``: it does not show a configuration file or an environment variable.
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
from linkspan.core.errors import Conflict, Full, LinkspanError, Rejected, Unavailable
from linkspan.core.supervise import ended, lasting
from linkspan.store import records
from linkspan.store.etcd_status import (
    FILLING,
    NOSPACE,
    EtcdStatus,
    MemberStatus,
    bytes_told,
    compared,
    has_room,
    next_fragmented,
)
from linkspan.store.replica import Replica

if TYPE_CHECKING:
    from linkspan.store.etcd_maintenance import Maintenance

log = logging.getLogger("linkspan.store.upkeep")

KEY = "upkeep/etcd"
"""The record by which the agents agree who has the turn."""

Allowed = Literal["none", "compact", "all"]
"""Values of the setting ``store_upkeep``: what agents may do."""

Compactor = Literal["", "linkspan", "other"]
OURS: Compactor = "linkspan"
OTHER: Compactor = "other"
"""Who compacts the history: the agents (OURS), or etcd itself or another program (OTHER); '' while it is not known."""

LONGEST = 6
"""How many times the pause between two tries to free a full store doubles: to about an hour."""

BACK = 0.05
"""Fraction of the quota by which a file must fall below a threshold before the agent reports the threshold again."""

LAGGING = 10.0
"""Seconds in which each member must apply what another one has applied."""

QUOTA_AGE = {False: 6 * 3600.0, True: 900.0}
"""Seconds for which a known quota is used; by whether a threshold is reached: an operator may raise the quota then."""


class Pace(msgspec.Struct, frozen=True):
    """Intervals of the upkeep, in seconds; ``changes``: the least number of changes in a turn that are compacted."""

    look: float = 10.0
    """Between two questions whether there is room. No more than the shortest ``reclaim_after``: hosts that cannot say
    that they live must not be overdue before this host knows why."""
    whole: float = 120.0
    """Between two requests for the status of all members."""
    turn: float = 300.0
    """As Kubernetes' API servers do: no live watch is so far behind."""
    patience: float = 7800.0
    """etcd's own compaction comes every hour and usually leaves an hour of history: two hours, and ten minutes."""
    full: float = 5.0
    """As ``look``, while the store is full; also the time over which the agents' tries to free it are spread."""
    again: float = 60.0
    """From the first try to free a full store to the second; each further pause is twice as long."""
    recover: float = 30.0
    """For a defragmented member to catch up."""
    changes: int = 1000
    """At about 400 bytes each: less than half a MB."""
    spread: float = 0.25
    """Fraction by which a wait may be longer, so that not all agents try at once."""


class Turn(msgspec.Struct, frozen=True):
    """The record of the last turn: which host took it, when (seconds since the epoch), and who compacts the history."""

    by: str = ""
    at: Annotated[float, msgspec.Meta(ge=0, le=1e11)] = 0.0
    compactor: Compactor = ""


class Upkeep:
    """Maintains an etcd, and has its status. A store without servers has no ``maintenance``, and needs none."""

    def __init__(
        self,
        replica: Replica,
        maintenance: Maintenance | None,
        host: str,
        allowed: Allowed,
        tell: Callable[[str], None],
        count: Callable[[str], None],
        pace: Pace = Pace(),  # noqa: B008 - it is frozen
        acts: Callable[[], bool] = lambda: True,
    ) -> None:
        """``tell`` takes a sentence for the operator; ``count`` takes "compact", "defragment" or "disarm" once done.

        ``allowed`` is what the agents may do. ``acts`` returns whether this one does it, or leaves it to others'.
        """
        self._replica = replica
        self._maintenance = maintenance
        self._host = host
        self.allowed = allowed
        self._tell = tell
        self._count = count
        self._pace = pace
        self._acts = acts
        self.etcd = EtcdStatus()
        """The last status of all members."""
        self.problem = ""
        """Why the last action failed, '' if it succeeded."""
        self.fix = ""
        self._revision = -1
        self._since = 0.0
        self._longer = 1.0
        self._looked = float("-inf")
        self._applied = (float("-inf"), 0)
        """When the members were compared, and the last index of raft's log that one of them had applied then."""
        self._owed = 0
        """The same index of an earlier look, LAGGING or longer ago."""
        self._next_try = float("-inf")
        self._tries = 0
        self._was_full = False
        """True if the store was full since the last turn."""
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
        """Stop the maintenance."""
        await ended(self._task)

    async def _follow(self, etcd: Maintenance) -> None:
        await asyncio.sleep(random.uniform(0, self._pace.look))  # noqa: S311 - it spreads, and hides nothing
        while True:
            try:
                await self.step(etcd)
            except Unavailable as error:  # the replica reports that the store is away
                log.debug("upkeep: %s", error.message)
            await asyncio.sleep((self._pace.full if self._replica.contact.full else self._pace.look) * self._any())

    def _any(self) -> float:
        """Return a random factor from 1 to 1 + ``spread``, for the next wait."""
        return 1 + random.uniform(0, self._pace.spread)  # noqa: S311 - it spreads, and hides nothing

    async def step(self, etcd: Maintenance) -> None:
        """Ask whether the store is full, and do this host's part of the upkeep. Raises Unavailable."""
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
            self._replica.note_room(full=True)  # it became full after this step asked
        except LinkspanError as error:
            if isinstance(error, Unavailable) and not isinstance(error, Rejected):
                raise
            self._fail(error.message, error.hint)

    async def asked(self) -> EtcdStatus:
        """Return the present status of all members, with their present quotas. Raises Unavailable."""
        return self.etcd if self._maintenance is None else await self._look(self._maintenance, quota_age=0)

    async def _look(self, etcd: Maintenance, quota_age: float | None = None) -> EtcdStatus:
        """Read the status of all members; a known quota is used for ``quota_age`` seconds (None: QUOTA_AGE)."""
        found = await etcd.status(QUOTA_AGE[self._level > 0] if quota_age is None else quota_age)
        at, applied = self._applied
        if now() - at >= LAGGING:
            self._owed, self._applied = applied, (now(), max((one.applied for one in found.answering), default=0))
        self.etcd = compared(found, self._owed)
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
        elif level < before == 1:
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
        if self.allowed == "none" or not self._replica.listed or not self._acts():
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
        """Take the turn, if no other agent was quicker and there is something to do; return whether it was taken."""
        known, waited = self._revision, now() - self._since
        self._since = now()
        head, written = await etcd.head()
        if written != known:
            return False
        ragged = self.allowed == "all" and next_fragmented(self.etcd, frozenset(), urgent=False) is not None
        if known and head - known < self._pace.changes and not ragged:
            return False
        compactor, filling = self.last.compactor, self.etcd.fill >= FILLING
        if known and not self._was_full:  # while it was full, the agents themselves compacted
            if await etcd.compacted(known):
                compactor = OTHER
            elif waited >= self._pace.patience or (filling and not compactor):
                compactor = OURS
        turn = Turn(self._host, time.time(), compactor)
        # Nothing of the last record is kept: whoever wrote it may have made it too large to be written again.
        record = records.encode(turn, b"", self._replica.settings.writes)
        if not await self._replica.store.transaction({KEY: record}, unchanged={KEY: known}):
            return False
        if known and (compactor == OURS or filling) and await etcd.compact(known):
            log.info("the store's history before revision %d was compacted", known)
            self._done("compact")
        if ragged:
            await self._defragment(etcd, urgent=False)
        return True

    async def _make_room(self, etcd: Maintenance) -> None:
        """Free a full store: compact, defragment and lift the alarm, as far as ``allowed``."""
        spared = self.last.compactor == OTHER and self.allowed != "all"
        if self.allowed == "none" or spared or now() < self._next_try or not self._acts():
            return
        # Twice as long each time: if the records themselves do not fit, a defragmentation does not help.
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
        """Wait until a member has applied raft's log up to ``applied``. Raises Conflict if it takes too long."""
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
        """Lift the alarms NOSPACE, unless they would come back at once."""
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
    """Return a sentence for a database that is filling or full, '' if no member answers."""
    if etcd.full:
        return "the store's quota is full: it takes no writes; `linkspan doctor` says what fills it, and what to do"
    worst = etcd.fullest
    if worst is None:
        return ""
    sizes = f"{bytes_told(worst.size)} of {bytes_told(worst.limit)} on member {worst.name}"
    return f"the store fills: {worst.fill:.0%} of its quota, {sizes}; `linkspan doctor` says why"
