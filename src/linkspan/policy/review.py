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


class Finding(msgspec.Struct, frozen=True):
    """Something that an author may not have meant; ``what`` is a sentence about the policy."""

    policy: str
    what: str
    fix: str


def review(
    judge: Judge, endpoints: Collection[Known], resolvers: Collection[Prefix] = (), askers: Collection[Party] = ()
) -> Iterator[Finding]:
    """Yield what is odd about policies, given all endpoints.

    ``resolvers`` are the addresses that hosts' name servers ask, and ``askers`` the other hosts. It takes up to a
    second for a thousand policies, so never on an event loop.
    """
    parties = [(one, Party(next(iter(one.addresses), None), judge.chosen(one.subject))) for one in endpoints]
    selecting = frozenset().union(*(party.chosen or frozenset() for _, party in parties))
    for policy in judge.policies:
        if policy.select.digest not in selecting:
            fix = "compare its labels, network and names with `linkspan endpoint list -o json`"
            yield Finding(policy.name, "it selects no container", fix)
    for direction in DIRECTIONS:
        sections = [section for section in judge.sections[direction] if section.clauses]
        for section in sections:
            yield from _of_section(section, selecting)
        orders = {policy.name: (policy.tier, policy.order) for policy in judge.policies}
        denying = [section for section in sections if any(clause.action == "deny" for clause in section.clauses)]
        for one, other in itertools.product(denying, sections):
            both = one.policy != other.policy and (other not in denying or one.policy < other.policy)
            if both and orders[one.policy] == orders[other.policy]:
                first, second = (one, other) if one.policy < other.policy else (other, one)
                yield from _opposite(direction, first, second, parties)
    yield from _lost_resolvers(judge, parties, resolvers, askers)


def _of_section(section: Section, selecting: frozenset[str]) -> Iterator[Finding]:
    for number, clause in enumerate(section.clauses):
        where = f"line {clause.line}" if clause.line else f"rule {number + 1}"
        if clause.peers and all(peer.digest and peer.digest not in selecting for peer in clause.peers):
            fix = "compare the labels of its peers with `linkspan endpoint list -o json`"
            yield Finding(section.policy, f"{where} is about no container that there is", fix)
        for before in section.clauses[:number]:
            if before.action != clause.action and _covers(before, clause):
                earlier = f"line {before.line}" if before.line else "an earlier rule"
                yield Finding(section.policy, f"{where} never counts, because {earlier} decides first", "swap the two")
                break


def _covers(one: Clause, other: Clause) -> bool:
    """Return whether one rule is about everything that another one is about."""
    peers = not one.peers or (bool(other.peers) and set(other.peers) <= set(one.peers))
    return peers and (not one.ports or (bool(other.ports) and all(_within(port, one.ports) for port in other.ports)))


def _within(port: Ports, ports: tuple[Ports, ...]) -> bool:
    return any(
        one.protocol == port.protocol and (not one.first or one.first <= port.first <= port.last <= one.last)
        for one in ports
        if not one.first or port.first
    )


def _opposite(
    direction: Direction, one: Section, other: Section, parties: Parties
) -> Iterator[Finding]:
    """Yield a contradiction of two policies of one order, of which the first counts because of its name."""
    pairs = [
        (mine, theirs)
        for mine, theirs in itertools.product(one.clauses, other.clauses)
        if mine.action != theirs.action and _meet(mine.ports, theirs.ports)
    ]
    ends = [*(party for _, party in parties), _OUTSIDE]
    for known, party in parties if pairs else ():
        if party.chosen is not None and {one.subject, other.subject} <= party.chosen:
            for mine, theirs in pairs:
                if any(mine.about(end) and theirs.about(end) for end in ends):
                    way = "to" if direction == "ingress" else "from"
                    what = (
                        f"line {mine.line} {_does(mine)} what policy {other.policy} line {theirs.line} {_does(theirs)} "
                        f"{way} {known.subject.name}, and counts only because of its name"
                    )
                    yield Finding(one.policy, what, "give the one that should decide a lower order")
                    return


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
