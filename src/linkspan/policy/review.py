"""Review of policies: those that select nothing, rules that never count, contradictions, and lost name servers."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.policy.judge import Clause, Judge, Party, Probe, Section
from linkspan.policy.model import DIRECTIONS, Direction, Ports, Subject

DNS = (Probe("udp", 53), Probe("tcp", 53))
_OUTSIDE = Party(None, outside=True)


class Known(msgspec.Struct, frozen=True):
    """An endpoint of the cluster: what selectors look at of it, and its addresses, without length."""

    subject: Subject
    addresses: tuple[Prefix, ...]


Parties = Collection[tuple[Known, Party]]
"""Endpoints, each with what a judge sees of it."""


MOST = 3_000_000
"""Comparisons of one review: about a second. A thousand policies of a few rules each need a part of that."""


class _Enough(Exception):
    """The review has made as many comparisons as it may."""


class _Effort:
    """Effort that a review may still spend."""

    def __init__(self, most: int) -> None:
        self._left = most

    def spend(self, comparisons: int) -> None:
        """Note that these are made next. Raises _Enough if they are too many."""
        self._left -= comparisons
        if self._left < 0:
            raise _Enough


class Finding(msgspec.Struct, frozen=True):
    """Something that an author may not have meant; ``what`` is a sentence about the policy, or ("") about all."""

    policy: str
    what: str
    fix: str


def review(
    judge: Judge, endpoints: Collection[Known], resolvers: Collection[Prefix] = (), askers: Collection[Party] = ()
) -> Iterator[Finding]:
    """Yield what is odd about policies, given all endpoints.

    ``resolvers`` are the addresses that hosts' name servers ask, and ``askers`` the other hosts. It takes up to some
    seconds, so never on an event loop. After MOST comparisons it says that it has not compared all.
    """
    try:
        yield from _found(judge, endpoints, resolvers, askers, _Effort(MOST))
    except _Enough:
        what = "there are too many rules to compare all of them, so other things may be odd as well"
        yield Finding("", what, "write fewer peers and ports in one rule, and fewer rules in one policy")


def _found(
    judge: Judge,
    endpoints: Collection[Known],
    resolvers: Collection[Prefix],
    askers: Collection[Party],
    effort: _Effort,
) -> Iterator[Finding]:
    parties = [(one, Party(next(iter(one.addresses), None), judge.chosen(one.subject))) for one in endpoints]
    selecting = frozenset().union(*(party.chosen or frozenset() for _, party in parties))
    for policy in judge.policies:
        if policy.select.digest not in selecting:
            fix = "compare its labels, network and names with `linkspan endpoint list -o json`"
            yield Finding(policy.name, "it selects no container", fix)
    yield from _lost_resolvers(judge, parties, resolvers, askers)
    meeting = _Meeting(judge, parties, effort)
    for direction in DIRECTIONS:
        sections = [section for section in judge.sections[direction] if section.clauses]
        for section in sections:
            yield from _of_section(section, selecting, effort)
        orders = {policy.name: (policy.tier, policy.order) for policy in judge.policies}
        denying = [section for section in sections if any(clause.action == "deny" for clause in section.clauses)]
        names = {section.policy for section in denying}
        for one, other in itertools.product(denying, sections):
            effort.spend(1)
            both = one.policy != other.policy and (other.policy not in names or one.policy < other.policy)
            if both and orders[one.policy] == orders[other.policy]:
                first, second = (one, other) if one.policy < other.policy else (other, one)
                yield from meeting.opposite(direction, first, second)


def _of_section(section: Section, selecting: frozenset[str], effort: _Effort) -> Iterator[Finding]:
    peers = [frozenset(clause.peers) for clause in section.clauses]
    for number, clause in enumerate(section.clauses):
        where = f"line {clause.line}" if clause.line else f"rule {number + 1}"
        if clause.peers and all(peer.digest and peer.digest not in selecting for peer in clause.peers):
            fix = "compare the labels of its peers with `linkspan endpoint list -o json`"
            yield Finding(section.policy, f"{where} is about no container that there is", fix)
        for place, before in enumerate(section.clauses[:number]):
            if before.action == clause.action:
                continue
            effort.spend(1 + len(peers[number]) + len(before.ports) * len(clause.ports))
            meant = not before.peers or (bool(clause.peers) and peers[number] <= peers[place])
            if meant and _covers(before.ports, clause.ports):
                earlier = f"line {before.line}" if before.line else "an earlier rule"
                yield Finding(section.policy, f"{where} never counts, because {earlier} decides first", "swap the two")
                break


def _covers(some: tuple[Ports, ...], others: tuple[Ports, ...]) -> bool:
    """Return whether a list of ports has all of another one; without any it means all."""
    return not some or (bool(others) and all(_within(port, some) for port in others))


def _within(port: Ports, ports: tuple[Ports, ...]) -> bool:
    return any(
        one.protocol == port.protocol and (not one.first or one.first <= port.first <= port.last <= one.last)
        for one in ports
        if not one.first or port.first
    )


class _Meeting:
    """Finds where policies of one order contradict each other, given all endpoints."""

    def __init__(self, judge: Judge, parties: Parties, effort: _Effort) -> None:
        self._effort = effort
        self._names = [known.subject.name for known, _ in parties]
        self._selected: dict[str, set[int]] = {}
        """By selector: the endpoints that it selects, by their place among all."""
        every: dict[object, Party] = {}
        for number, (_, party) in enumerate(parties):
            every[party.address if judge.by_address else party.chosen] = party
            for digest in party.chosen or ():
                self._selected.setdefault(digest, set()).add(number)
        self._ends = [*every.values(), _OUTSIDE]
        """The other ends that may matter: of endpoints that all selectors take for the same, one."""

    def opposite(self, direction: Direction, one: Section, other: Section) -> Iterator[Finding]:
        """Yield a contradiction of two policies, of which the first counts because of its name."""
        both = self._selected.get(one.subject, set()) & self._selected.get(other.subject, set())
        for mine, theirs in itertools.product(one.clauses, other.clauses) if both else ():
            self._effort.spend(1 + len(mine.ports) * len(theirs.ports))
            if mine.action != theirs.action and _meet(mine.ports, theirs.ports) and self._share(mine, theirs):
                way = "to" if direction == "ingress" else "from"
                what = (
                    f"line {mine.line} {_does(mine)} what policy {other.policy} line {theirs.line} {_does(theirs)} "
                    f"{way} {self._names[min(both)]}, and counts only because of its name"
                )
                yield Finding(one.policy, what, "give the one that should decide a lower order")
                return

    def _share(self, one: Clause, other: Clause) -> bool:
        """Return whether two rules are both about some other end."""
        for end in self._ends:
            self._effort.spend(1 + len(one.peers) + len(other.peers))
            if one.about(end) and other.about(end):
                return True
        return False


def _does(clause: Clause) -> str:
    return {"allow": "allows", "deny": "denies", "pass": "passes on"}[clause.action]


def _meet(some: tuple[Ports, ...], others: tuple[Ports, ...]) -> bool:
    """Return whether two lists of ports have one in common; without any they mean all."""
    return (
        not some
        or not others
        or any(
            one.protocol == other.protocol
            and (not one.first or not other.first or (one.first <= other.last and other.first <= one.last))
            for one, other in itertools.product(some, others)
        )
    )


def _lost_resolvers(
    judge: Judge, parties: Parties, resolvers: Collection[Prefix], askers: Collection[Party]
) -> Iterator[Finding]:
    """Yield containers that are hosts' resolvers, and that policies close to all other hosts."""
    for known, party in parties:
        if askers and not set(known.addresses).isdisjoint(resolvers):
            found = [judge.judged("ingress", party, asker, probe) for asker in askers for probe in DNS]
            by = found[0].by
            if by is not None and not any(verdict.allowed for verdict in found):
                what = f"it refuses other hosts' DNS queries to {known.subject.name}, which is a resolver of hosts"
                yield Finding(by.policy, what, "allow 53/udp and 53/tcp from the hosts, by cidr")
