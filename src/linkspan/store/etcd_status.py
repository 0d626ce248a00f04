"""Status of an etcd cluster by its members' answers: versions, sizes, quotas and alarms; pure.

Three sizes matter, all of one member's own database file:
    - ``size``: the file. etcd compares this one with the quota. It never shrinks, except by a defragmentation.
    - ``in_use``: the part of it that holds records and their history. A compaction of the history lowers it.
    - ``quota``: where etcd raises the alarm NOSPACE, and takes no writes until somebody lifts that alarm.
"""

from __future__ import annotations

import msgspec

NOSPACE, CORRUPT = "NOSPACE", "CORRUPT"

DEFAULT_QUOTA = 2 << 30
"""Bytes: etcd's own default (etcd's server/storage/quota.go)."""
WARN, SEVERE = 0.6, 0.8
"""Parts of the quota from which on an operator is warned."""
FILLING = 0.25
"""The part of the quota from which on history is not left to anybody else's compaction."""
LOOSE = 0.5
"""The part of a file that may be unused: from here on a defragmentation halves it."""
LEAST = 100 << 20
"""Bytes: nobody misses what a smaller file could give back, unless that is much of the quota."""
EASY = 0.9
"""The part of the quota below which all members must be before the alarm NOSPACE is lifted, else it comes back."""
UNSEEN = "it advertises no address at which this host could ask it"
"""Why a member was not asked: it may be well."""
STEPS = "docs/store.md (When the quota is full) has the steps"
"""What to do about NOSPACE where nothing more is known."""
UNIT = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


class MemberStatus(msgspec.Struct, frozen=True):
    """A member of an etcd cluster; ``endpoint`` is where it answered, HOST:PORT.

    One that was not asked, or does not answer, says why in ``problem``, and has no version. Sizes are bytes. A quota is
    0 if it is not known, and below 0 if the member has none. ``applied`` is its index in raft's log.
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
    problem: str = ""

    @property
    def limit(self) -> float:
        """The quota that counts, in bytes: etcd's default where it is not known."""
        return self.quota or DEFAULT_QUOTA if self.quota >= 0 else float("inf")

    @property
    def fill(self) -> float:
        """The part of its quota that its file takes."""
        return self.size / self.limit

    @property
    def loose(self) -> float:
        """The part of its file that is unused."""
        return max(self.size - self.in_use, 0) / self.size if self.size else 0.0


class EtcdStatus(msgspec.Struct, frozen=True):
    """All members, by name, as they answered ``at`` (seconds since the epoch), and the alarms: (member's id, kind)."""

    at: float = 0.0
    members: tuple[MemberStatus, ...] = ()
    alarms: tuple[tuple[str, str], ...] = ()

    @property
    def answering(self) -> tuple[MemberStatus, ...]:
        """The members that answered."""
        return tuple(one for one in self.members if not one.problem)

    @property
    def full(self) -> bool:
        """Whether it takes no writes until the alarm NOSPACE is lifted."""
        return any(kind == NOSPACE for _, kind in self.alarms)

    @property
    def fullest(self) -> MemberStatus | None:
        """The member whose file takes the largest part of its quota; one of them stops all writes."""
        return max(self.answering, key=lambda one: one.fill, default=None)

    @property
    def fill(self) -> float:
        """The part of the quota that the fullest member's file takes."""
        return self.fullest.fill if self.fullest is not None else 0.0

    @property
    def level(self) -> float:
        """The last threshold that is reached: 0, WARN, SEVERE, or 1 where it is full."""
        if self.full:
            return 1.0
        return next((one for one in (SEVERE, WARN) if self.fill >= one), 0.0)

    def called(self, member: str) -> str:
        """Return a member's name by its id."""
        return next((one.name for one in self.members if one.id == member), member)


def fragmented(member: MemberStatus, *, urgent: bool) -> bool:
    """Return whether a defragmentation of a member is worth that it does not answer meanwhile.

    Half of the file must be unused, and that must be much by itself or of the quota; or the file takes so much of the
    quota that a fifth of it is worth the while. An ``urgent`` one is after NOSPACE, and the compaction that followed:
    etcd counts what that freed as unused only when something is written again. So the file's size alone tells.
    """
    if member.problem or not member.endpoint:
        return False
    if member.fill >= WARN:
        return urgent or member.loose >= 0.2
    return member.loose >= LOOSE and member.size >= min(LEAST, member.limit / 4)


def next_fragmented(etcd: EtcdStatus, done: frozenset[str], *, urgent: bool) -> MemberStatus | None:
    """Return the member to defragment next: the leader last, and not before all others are done.

    A leader that does not answer for a moment holds up every write, and one that leads for long enough to be replaced
    costs an election; so its turn comes once, at the end.
    """
    left = [one for one in etcd.members if one.id not in done and fragmented(one, urgent=urgent)]
    return min(left, key=lambda one: (one.leader, one.name), default=None)


def has_room(etcd: EtcdStatus) -> bool:
    """Return whether every member that answers is well below its quota, so that NOSPACE does not come back at once."""
    return bool(etcd.answering) and all(one.fill < EASY for one in etcd.answering)


def bytes_told(number: float) -> str:
    """Return bytes for people: 1.5 GiB."""
    for unit, name in UNIT:
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} B"
