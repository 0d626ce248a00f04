"""Voting: which host becomes a voter next, and which voter is taken out (pure).

One step at a time, and each one leaves etcd with a quorum that answers. A dead voter is replaced only if a living host
can take its place: without one it costs nothing to wait, and the voter may come back with its data. New voters are
learners first, so a host that never catches up delays no write. No step leads to an even number of voters for longer
than to the next one, unless hosts are missing: two voters survive the loss of none, as one does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

FIRST_OF = ((7, 5), (3, 3))
"""From so many hosts on a cluster has so many voters; with fewer hosts it has one."""
MOST = 7
"""Most voters that an operator may want: etcd's maintainers advise against more, because each write waits for them."""
LEAST_REPLACE = 60.0
"""Least seconds that an operator may let a dead voter be waited for: a host that starts again needs as long."""
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class VotingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster's settings of voting; ``voters`` 0: as many as its number of hosts asks for.

    All times are seconds. ``steady``: all other voters must have been healthy for so long before one is added. A dead
    voter is replaced after ``replace_after``, and a learner without progress is taken out after ``evict_after``.
    ``first`` is the id of the host that an operator wants as the next voter.
    """

    voters: Annotated[int, msgspec.Meta(ge=0, le=MOST)] = 0
    steady: Seconds = 60.0
    replace_after: Seconds = 600.0
    evict_after: Seconds = 300.0
    first: str = ""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A member of etcd as the deciding voter sees it.

    ``id`` is etcd's, and ``host`` the host's ('' before a learner has started). ``healthy`` and ``failing`` are the
    seconds for which it has answered, or has not: one of them is 0. ``still``: seconds without progress of a learner.
    """

    id: str
    host: str
    learner: bool = False
    leader: bool = False
    healthy: float = 0.0
    failing: float = 0.0
    still: float = 0.0


class Candidate(msgspec.Struct, frozen=True):
    """A living host that may become a voter, and its address to the others."""

    host: str
    address: str


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """The situation: etcd's members, who may become a voter (the best first), how many hosts there are.

    ``refused``: the learner's host cannot become a voter, because it said so, or because nobody wants it any more.
    """

    members: tuple[Seen, ...]
    candidates: tuple[Candidate, ...] = ()
    hosts: int = 1
    settings: VotingSettings = VotingSettings()
    refused: bool = False

    @property
    def voters(self) -> tuple[Seen, ...]:
        """The members that vote."""
        return tuple(one for one in self.members if not one.learner)

    @property
    def wanted(self) -> int:
        """Return how many voters the cluster should have."""
        return self.settings.voters or voters_for(self.hosts)


class Add(msgspec.Struct, frozen=True):
    """A host becomes a learner."""

    candidate: Candidate


class Promote(msgspec.Struct, frozen=True):
    """A learner becomes a voter."""

    member: Seen


class Remove(msgspec.Struct, frozen=True):
    """A member is taken out; ``why`` is for people."""

    member: Seen
    why: str


class Wait(msgspec.Struct, frozen=True):
    """Nothing to do now; ``why`` says what is waited for, '' if there are as many voters as there should be."""

    why: str = ""


def voters_for(hosts: int) -> int:
    """Return how many voters a cluster of so many hosts has."""
    return next((voters for least, voters in FIRST_OF if hosts >= least), 1)


def quorum(voters: int) -> int:
    """Return how many of so many voters must answer."""
    return voters // 2 + 1


def spare(members: Iterable[Seen]) -> int:
    """Return how many more voters may be lost; below 0: too many are lost already."""
    voters = [one for one in members if not one.learner]
    return sum(not one.failing for one in voters) - quorum(len(voters))


def refusal(members: tuple[Seen, ...], leaving: str) -> str:
    """Return why a voter cannot be taken out, '' if it can; ``leaving`` is its id in etcd."""
    voters = [one for one in members if not one.learner]
    left = [one for one in voters if one.id != leaving]
    if not left:
        return "it is the last voter, which has the records of all hosts"
    answering = sum(not one.failing for one in left)
    if answering < quorum(len(left)):
        return f"only {answering} of the other {len(left)} voters answer, and {quorum(len(left))} must"
    return ""


def next_step(seen: Situation) -> Add | Promote | Remove | Wait:
    """Return the next step. Each one changes etcd's members at most once."""
    if spare(seen.members) < 0:
        return Wait("too few voters answer")
    learner = next((one for one in seen.members if one.learner), None)
    if learner is not None:
        return _of_learner(seen, learner)
    return _surplus(seen) or _dead(seen) or _growth(seen)


def _of_learner(seen: Situation, learner: Seen) -> Promote | Remove | Wait:
    if seen.refused:
        return Remove(learner, "it cannot become a voter")
    if learner.still >= seen.settings.evict_after:
        return Remove(learner, f"it made no progress for {learner.still:.0f} s")
    if not learner.host:
        return Wait("the new voter starts its etcd")
    if (why := _unsteady(seen, 0)) is not None:
        return why
    return Promote(learner)


def _surplus(seen: Situation) -> Remove | None:
    """Return the removal of a voter if there are too many: a dead one first, the leader last."""
    voters = seen.voters
    if len(voters) <= seen.wanted:
        return None
    least = sorted(voters, key=lambda one: (not one.failing, one.leader, one.host))[0]
    if not least.failing and _unsteady(seen, seen.settings.steady) is not None:
        return None
    if refusal(seen.members, least.id):
        return None
    return Remove(least, f"{seen.wanted} of {len(voters)} voters are enough")


def _dead(seen: Situation) -> Remove | None:
    """Return the removal of a voter that has been dead for long, if a living host can take its place."""
    long = [one for one in seen.voters if one.failing >= seen.settings.replace_after and one.failing]
    if not long or not seen.candidates:
        return None
    worst = max(long, key=lambda one: (one.failing, one.host))
    return Remove(worst, f"it has not answered for {worst.failing:.0f} s, and another host takes its place")


def _growth(seen: Situation) -> Add | Wait:
    voters, wanted = len(seen.voters), seen.wanted
    if voters >= wanted:
        return Wait()
    reached = min(wanted, voters + len(seen.candidates))
    if reached <= voters or (reached % 2 == 0 and reached != wanted and reached - 1 <= voters):
        return Wait("no other host may become a voter now")
    return _unsteady(seen, seen.settings.steady) or Add(seen.candidates[0])


def _unsteady(seen: Situation, seconds: float) -> Wait | None:
    """Return what is waited for if not all voters have been healthy for so long."""
    if any(one.failing for one in seen.voters):
        return Wait("a voter does not answer")
    if min(one.healthy for one in seen.voters) < seconds:
        return Wait(f"all voters must be healthy for {seconds:g} s")
    return None


class Clocks:
    """Since when each member answers or does not, and when a learner last made progress; by etcd's member ids."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[bool, float]] = {}
        self._progress: dict[str, tuple[object, float]] = {}

    def note(self, id_: str, *, answers: bool, progress: object, now: float) -> None:
        """Record what a member does at a moment (a monotonic clock's seconds)."""
        if self._since.get(id_, (None, 0))[0] is not answers:
            self._since[id_] = answers, now
        if self._progress.get(id_, (None, 0))[0] != progress or id_ not in self._progress:
            self._progress[id_] = progress, now

    def keep(self, ids: Iterable[str]) -> None:
        """Forget all other members."""
        known = set(ids)
        self._since = {id_: one for id_, one in self._since.items() if id_ in known}
        self._progress = {id_: one for id_, one in self._progress.items() if id_ in known}

    def times(self, id_: str, now: float) -> tuple[float, float, float]:
        """Return for how many seconds a member has been healthy, failing, and without progress.

        A member that fails has done so for more than nothing, also at its first look.
        """
        answers, since = self._since[id_]
        lasted = now - since
        still = now - self._progress[id_][1]
        return (lasted, 0.0, still) if answers else (0.0, max(lasted, 0.001), still)
