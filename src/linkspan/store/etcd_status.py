"""Status of an etcd cluster from its members' answers: versions, sizes, quotas and alarms; pure.

Each member has a database file of its own, with three sizes in bytes:
    - ``size``: the file's. etcd compares this one with the quota. Only a defragmentation makes it smaller.
    - ``in_use``: the part of the file that contains records and their history. A compaction makes it smaller.
    - ``quota``: at this size of the file etcd raises the alarm NOSPACE, and takes no writes until somebody lifts it.
"""

from __future__ import annotations

import msgspec

NOSPACE, CORRUPT = "NOSPACE", "CORRUPT"

DEFAULT_QUOTA = 2 << 30
"""Bytes: etcd's own default (etcd's server/storage/quota.go)."""
WARN, SEVERE = 0.6, 0.8
"""Fractions of the quota at which the operator is warned."""
FILLING = 0.25
"""Fraction of the quota from which the agents compact the history even if etcd does so itself."""
LOOSE = 0.5
"""Fraction of a file that may be unused: from here on a defragmentation halves the file."""
LEAST = 100 << 20
"""Bytes: a smaller file is not worth a defragmentation, unless it takes much of the quota."""
FAR = 1000
"""Entries of raft's log by which a member may be behind the others: they answer within some milliseconds."""
EASY = 0.9
"""Fraction of the quota below which all members must be before the alarm NOSPACE is lifted: otherwise it comes back."""
UNSEEN = "it advertises no address at which this host could ask it"
"""Why a member was not asked: it may be healthy."""
STEPS = "docs/store.md (When the quota is full) has the steps"
"""What to do about NOSPACE if nothing more is known."""
UNIT = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


class MemberStatus(msgspec.Struct, frozen=True):
    """Status of a member of an etcd cluster; it answered at ``endpoint`` (HOST:PORT).

    If it was not asked or did not answer, ``problem`` says why and ``version`` is ''. Sizes are bytes. ``quota`` is 0
    if it is not known, and below 0 if the member has none. ``led``: the member knows a leader. ``applied``: the last
    index of raft's log that it has applied. ``lags``: the others had applied more some time ago (``compared``).
    """

    id: str
    name: str
    endpoint: str = ""
    version: str = ""
    size: int = 0
    in_use: int = 0
    quota: int = 0
    leader: bool = False
    learner: bool = False
    led: bool = True
    applied: int = 0
    lags: bool = False
    problem: str = ""

    @property
    def limit(self) -> float:
        """The effective quota in bytes: etcd's default if the quota is not known, infinite if there is none."""
        return self.quota or DEFAULT_QUOTA if self.quota >= 0 else float("inf")

    @property
    def fill(self) -> float:
        """The fraction of its quota that its file takes."""
        return self.size / self.limit

    @property
    def loose(self) -> float:
        """The fraction of its file that is unused."""
        return max(self.size - self.in_use, 0) / self.size if self.size else 0.0


class EtcdStatus(msgspec.Struct, frozen=True):
    """The members in the order of their names, and the alarms as (member id, kind).

    ``at`` is when they answered, in seconds since the epoch; 0: never.
    """

    at: float = 0.0
    members: tuple[MemberStatus, ...] = ()
    alarms: tuple[tuple[str, str], ...] = ()

    @property
    def answering(self) -> tuple[MemberStatus, ...]:
        """The members that answered."""
        return tuple(one for one in self.members if not one.problem)

    @property
    def full(self) -> bool:
        """True if etcd takes no writes until somebody lifts the alarm NOSPACE."""
        return any(kind == NOSPACE for _, kind in self.alarms)

    @property
    def fullest(self) -> MemberStatus | None:
        """The member whose file takes the largest fraction of its quota: one full member stops all writes."""
        return max(self.answering, key=lambda one: one.fill, default=None)

    @property
    def fill(self) -> float:
        """The fraction of its quota that the fullest member's file takes."""
        return self.fullest.fill if self.fullest is not None else 0.0

    @property
    def level(self) -> float:
        """The highest threshold that is reached: 0 (none), WARN, SEVERE, or 1 if etcd is full."""
        if self.full:
            return 1.0
        return next((one for one in (SEVERE, WARN) if self.fill >= one), 0.0)

    def called(self, member: str) -> str:
        """Return the name of the member with this id; the id if no member has it."""
        return next((one.name for one in self.members if one.id == member), member)


def compared(etcd: EtcdStatus, due: int) -> EtcdStatus:
    """Return the status with those members marked that lag, such as one whose disk hangs: it still answers.

    ``due`` is the last index that a member had applied a while ago, so all must have applied it by now, unless etcd was
    restored from a backup since: its log begins anew then.
    """
    last = max((one.applied for one in etcd.answering), default=0)
    return msgspec.structs.replace(
        etcd,
        members=tuple(
            msgspec.structs.replace(one, lags=one.applied < max(min(due, last), last - FAR))
            if not one.problem and not one.learner
            else one
            for one in etcd.members
        ),
    )


def fragmented(member: MemberStatus, *, urgent: bool) -> bool:
    """Return whether a defragmentation of a member is worth the pause in which the member does not answer.

    Below WARN of the quota, half of the file must be unused, and the file must be large (LEAST, or a quarter of the
    quota). From WARN on, a fifth of the file is enough. ``urgent``: etcd is full, and its history was just compacted.
    etcd counts the freed space as unused only after the next write, so then the file's size alone decides.
    """
    if member.problem or not member.endpoint:
        return False
    if member.fill >= WARN:
        return urgent or member.loose >= 0.2
    return member.loose >= LOOSE and member.size >= min(LEAST, member.limit / 4)


def next_fragmented(etcd: EtcdStatus, done: frozenset[str], *, urgent: bool) -> MemberStatus | None:
    """Return the member to defragment next, None if there is none: the leader is the last.

    A leader that does not answer delays every write, and perhaps costs an election. So it is defragmented once, at the
    end. ``done`` has the ids of the members that were defragmented already.
    """
    left = [one for one in etcd.members if one.id not in done and fragmented(one, urgent=urgent)]
    return min(left, key=lambda one: (one.leader, one.name), default=None)


def has_room(etcd: EtcdStatus) -> bool:
    """Return whether every member that answers is below EASY of its quota, so that NOSPACE stays away."""
    return bool(etcd.answering) and all(one.fill < EASY for one in etcd.answering)


def bytes_told(number: float) -> str:
    """Return a number of bytes as text for people, such as "1.5 GiB"."""
    for unit, name in UNIT:
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} B"
