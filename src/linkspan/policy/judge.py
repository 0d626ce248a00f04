"""Judge: the verdict of policies on a connection, by policy and line. Pure, and the same on every host."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import msgspec

from linkspan.core import icmp
from linkspan.core.addresses import Prefix, prefix
from linkspan.policy.model import (
    DIRECTIONS,
    TIERS,
    Direction,
    Peer,
    Policy,
    Ports,
    Protocol,
    RuleAction,
    Selector,
    Subject,
    network_of,
    selects,
)

_PORTS = 65536
LINK_LOCAL = prefix("fe80::/10")
"""Addresses that a container has on its bridge besides its own (RFC 4291, 2.5.6): in no pool, and not outside."""
PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp", "sctp", "icmp")


class Probe(msgspec.Struct, frozen=True):
    """A connection's protocol and destination port; of icmp the number of its request, 0 for any other message."""

    protocol: str
    port: int = 0


class Party(msgspec.Struct, frozen=True):
    """One end of a connection, as a judge sees it.

    ``chosen`` are the digests of the selectors that select it, None if it is no known endpoint. ``outside`` says
    whether its address is in no pool; None as address means any address outside. Of an endpoint that is not
    ``policed`` its own policies are not enforced. ``names`` are the DNS names of policies that it has.
    """

    address: Prefix | None
    chosen: frozenset[str] | None = None
    outside: bool = False
    policed: bool = True
    names: frozenset[str] = frozenset()


def is_outside(address: Prefix, pools: Iterable[Prefix]) -> bool:
    """Return whether an address is neither in a pool nor one that only a bridge's containers have."""
    return not LINK_LOCAL.holds(address) and not any(pool.holds(address) for pool in pools)


class Match(msgspec.Struct, frozen=True):
    """A peer of a clause: a selector's digest, a prefix without some others, the outside, or a DNS name."""

    digest: str = ""
    prefix: Prefix | None = None
    excepts: tuple[Prefix, ...] = ()
    outside: bool = False
    name: str = ""

    def fits(self, party: Party) -> bool:
        """Return whether a party is meant."""
        if self.outside:
            return party.outside
        if self.name:
            return party.outside and self.name in party.names
        if self.prefix is None:
            return party.chosen is not None and self.digest in party.chosen
        at = party.address
        if at is None or not self.prefix.holds(at):
            return False
        return not any(one.holds(at) for one in self.excepts)


class Clause(msgspec.Struct, frozen=True):
    """A rule in a judge's terms; without peers it means everybody, without ports everything."""

    action: RuleAction
    peers: tuple[Match, ...]
    ports: tuple[Ports, ...]
    line: int

    def fits(self, party: Party, probe: Probe) -> bool:
        """Return whether the rule is about a connection with this other end."""
        return self.about(party) and (not self.ports or any(_within(one, probe) for one in self.ports))

    def about(self, party: Party) -> bool:
        """Return whether the rule is about connections with this other end, at some port."""
        return not self.peers or any(one.fits(party) for one in self.peers)


class Section(msgspec.Struct, frozen=True):
    """A policy's part for one direction; ``network`` is set, and ``policy`` is not, in a network's default.

    Such defaults are a tier of their own, "default", after all others. Within a tier sections count by ``order``, then
    by their policies' names.
    """

    policy: str
    line: int
    subject: str
    clauses: tuple[Clause, ...]
    isolates: bool
    tier: str = "normal"
    network: str = ""
    order: int = 0

    @property
    def passes(self) -> bool:
        """True if a rule leaves the decision to the next tier."""
        return any(clause.action == "pass" for clause in self.clauses)

    @property
    def called(self) -> str:
        """Return what people call it."""
        return f"default of network {self.network}" if self.network else f"policy {self.policy}"


class By(msgspec.Struct, frozen=True):
    """The policy and line that decide, for people; of a network's default the line is 0."""

    policy: str
    line: int


class Verdict(msgspec.Struct, frozen=True):
    """The verdict on a connection: whether it is allowed, and by which policy and line; by no policy: both empty.

    ``network`` names the network whose default refuses it, ``direction`` is that of the rules that decide.
    """

    allowed: bool
    policy: str = ""
    line: int = 0
    network: str = ""
    direction: Direction | None = None

    @property
    def by(self) -> By | None:
        """Return what decides, None if no policy does."""
        if self.network:
            return By(f"default of network {self.network}", 0)
        return By(self.policy, self.line) if self.policy else None


def _within(ports: Ports, probe: Probe) -> bool:
    return ports.protocol == probe.protocol and (not ports.first or ports.first <= probe.port <= ports.last)


class Terms:
    """A policy in a judge's terms. It does not change."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.selectors: dict[str, Selector] = {}
        """By digest: every selector that the policy has."""
        self.peers: set[str] = set()
        """The digests of those that are peers of a rule."""
        self.names = policy.names
        self.sections = {direction: self._section(direction) for direction in DIRECTIONS}

    def _section(self, direction: Direction) -> Section | None:
        one = self.policy
        if (rules := one.rules(direction)) is None:
            return None
        clauses = tuple(
            Clause(rule.action, tuple(itertools.chain(*map(self._matches, rule.peers))), rule.ports, rule.line)
            for rule in rules
        )
        return Section(
            one.name, one.line, self._digest(one.select), clauses, one.isolates(direction), one.tier, order=one.order
        )

    def _matches(self, peer: Peer) -> Iterator[Match]:
        if peer.select is not None:
            digest = self._digest(peer.select)
            self.peers.add(digest)
            yield Match(digest)
        elif peer.outside:
            yield Match(outside=True)
        elif peer.dns:
            yield from (Match(name=name) for name in peer.dns)
        else:
            yield Match("", network_of(peer.cidr), tuple(map(network_of, peer.excepts)))

    def _digest(self, selector: Selector) -> str:
        digest = selector.digest
        self.selectors[digest] = selector
        return digest


class Judge:
    """Policies and networks' defaults, prepared for many questions. It does not change."""

    def __init__(
        self, policies: Iterable[Policy] = (), closed: Iterable[str] = (), before: Judge | None = None
    ) -> None:
        """Take policies, and the networks with default-deny as ``closed``.

        What the judge ``before`` has read of a policy is not read again.
        """
        self.policies = tuple(sorted(policies, key=lambda one: (TIERS.index(one.tier), one.order, one.name)))
        self.closed = tuple(sorted(closed))
        known = before.terms if before is not None else {}
        self.terms: dict[str, Terms] = {
            one.name: known[one.name] if one.name in known and known[one.name].policy is one else Terms(one)
            for one in self.policies
        }
        """By name: what each policy says."""
        self.selectors: dict[str, Selector] = {}
        """By digest: every selector that a policy has."""
        self.peers: set[str] = set()
        """The digests of those that are peers of a rule."""
        for terms in self.terms.values():
            self.selectors |= terms.selectors
            self.peers |= terms.peers
        self.sections: Mapping[Direction, tuple[Section, ...]] = {
            direction: (*self._of(direction), *(self._defaults() if direction == "ingress" else ()))
            for direction in DIRECTIONS
        }
        self._anchored: dict[tuple[str, str], list[str]] = {}
        """By label and value: the selectors that need it, so that an endpoint is compared with few."""
        self._others: list[str] = []
        for digest, selector in self.selectors.items():
            anchor = next(iter(selector.labels.items()), None)
            (self._others if anchor is None else self._anchored.setdefault(anchor, [])).append(digest)

    def _of(self, direction: Direction) -> Iterable[Section]:
        return (section for terms in self.terms.values() if (section := terms.sections[direction]) is not None)

    def _defaults(self) -> Iterable[Section]:
        for network in self.closed:
            selector = Selector(networks=(network,))
            self.selectors[selector.digest] = selector
            yield Section("", 0, selector.digest, (), isolates=True, tier="default", network=network)

    def __bool__(self) -> bool:
        return any(self.sections.values())

    @cached_property
    def subjects(self) -> Mapping[Direction, frozenset[str]]:
        """By direction: the digests of the selectors whose endpoints some policy is about."""
        return {direction: frozenset(one.subject for one in self.sections[direction]) for direction in DIRECTIONS}

    @cached_property
    def _of_subject(self) -> Mapping[Direction, Mapping[str, list[tuple[int, Section]]]]:
        """By direction and selector's digest: the sections about what it selects, each with its place."""
        found: dict[Direction, dict[str, list[tuple[int, Section]]]] = {direction: {} for direction in DIRECTIONS}
        for direction in DIRECTIONS:
            for place, section in enumerate(self.sections[direction]):
                found[direction].setdefault(section.subject, []).append((place, section))
        return found

    def tiers_of(self, direction: Direction, chosen: frozenset[str]) -> list[list[Section]]:
        """Return the sections about an endpoint that these selectors select, in the order in which they count, by tier.

        What no policy of a tier decides, the next one does.
        """
        subjects = self._of_subject[direction]
        several = [subjects[digest] for digest in chosen if digest in subjects]
        ordered = (section for _, section in sorted(itertools.chain(*several), key=lambda one: one[0]))
        return [list(some) for _, some in itertools.groupby(ordered, key=lambda one: one.tier)]

    @cached_property
    def by_host(self) -> bool:
        """True if a selector looks at hosts' names."""
        return any(selector.hosts for selector in self.selectors.values())

    @cached_property
    def by_address(self) -> bool:
        """True if a rule looks at addresses."""
        every = (section for sections in self.sections.values() for section in sections)
        return any(peer.prefix is not None for one in every for clause in one.clauses for peer in clause.peers)

    @cached_property
    def names(self) -> frozenset[str]:
        """The DNS names that rules are about."""
        return frozenset().union(*(terms.names for terms in self.terms.values()))

    @cached_property
    def askers(self) -> frozenset[str]:
        """The digests of the selectors whose endpoints some policy lets out by DNS names."""
        return frozenset(terms.policy.select.digest for terms in self.terms.values() if terms.names)

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys of all labels that selectors of peers look at."""
        return frozenset().union(*(self.selectors[digest].keys for digest in self.peers))

    def chosen(self, subject: Subject) -> frozenset[str]:
        """Return the digests of the selectors that select an endpoint."""
        found = [*self._others]
        for pair in subject.labels.items():
            found += self._anchored.get(pair, ())
        return frozenset(digest for digest in found if selects(self.selectors[digest], subject))

    def about(self, chosen: frozenset[str], directions: Iterable[Direction] = DIRECTIONS) -> frozenset[str]:
        """Return what is about an endpoint that these selectors select: policies and defaults, for people."""
        every = (section for direction in directions for section in self.sections[direction])
        return frozenset(one.called for one in every if one.subject in chosen)

    def cidrs(self, direction: Direction, own: Party) -> list[Match]:
        """Return the prefixes at which the policies that select one end, ``own``, look for the other one."""
        sections = itertools.chain(*self.tiers_of(direction, own.chosen or frozenset()))
        peers = (peer for one in sections for clause in one.clauses for peer in clause.peers)
        return [peer for peer in peers if peer.prefix is not None]

    def verdict(self, source: Party, target: Party, probe: Probe) -> Verdict:
        """Return the verdict of both ends: the source's egress first, then the target's ingress."""
        out = self.judged("egress", source, target, probe)
        if not out.allowed:
            return out
        into = self.judged("ingress", target, source, probe)
        return into if not into.allowed or into.policy else out

    def judged(self, direction: Direction, own: Party, other: Party, probe: Probe) -> Verdict:
        """Return the verdict of the policies that select one end, ``own``, on a connection with the other one."""
        if own.chosen is None or not own.policed:
            return Verdict(allowed=True)
        for sections in self.tiers_of(direction, own.chosen):
            if (found := _in_tier(direction, sections, other, probe)) is not None:
                return found
        return Verdict(allowed=True)

    def openings(self, source: Party, target: Party) -> tuple[Ports, ...]:
        """Return all that is allowed from one end to the other; whole protocols have no numbers."""
        ends = self._steps("egress", source, target), self._steps("ingress", target, source)
        found: list[Ports] = []
        for protocol in PROTOCOLS:
            out, into = (int.from_bytes(_painted(steps, protocol), "big") for steps in ends)
            both = (out & into).to_bytes(_PORTS, "big")
            if protocol == "icmp":
                numbers = [number for number in (0, *icmp.REQUESTS) if both[number]]
                whole = len(numbers) > len(icmp.REQUESTS)
                found += [Ports("icmp")] if whole else [Ports("icmp", one, one) for one in numbers if one]
                continue
            for span in re.finditer(b"\1+", both[1:]):
                first, last = span.start() + 1, span.end()
                found.append(Ports(protocol) if (first, last) == (1, _PORTS - 1) else Ports(protocol, first, last))
        return tuple(found)

    def _steps(self, direction: Direction, own: Party, other: Party) -> list[_Step]:
        """Return what decides on connections of one end, ``own``, with the other one, by tiers."""
        if own.chosen is None or not own.policed:
            return []
        found = []
        for mine in self.tiers_of(direction, own.chosen):
            lines = [(one.ports, one.action) for section in mine for one in section.clauses if one.about(other)]
            found.append(_Step(tuple(lines), any(section.isolates for section in mine)))
        return found


class _Step(msgspec.Struct, frozen=True):
    """Lines of a tier about connections between two ends, in order, and whether it closes what they leave open.

    Each line has its ports (none: everything).
    """

    lines: tuple[tuple[tuple[Ports, ...], RuleAction], ...]
    isolates: bool


def _in_tier(direction: Direction, sections: Iterable[Section], other: Party, probe: Probe) -> Verdict | None:
    """Return what a tier's policies decide for an endpoint, None if the next tier does."""
    isolating: Section | None = None
    for section in sections:
        for clause in section.clauses:
            if clause.fits(other, probe):
                if clause.action == "pass":
                    return None
                allowed = clause.action == "allow"
                return Verdict(allowed, section.policy, clause.line or section.line, direction=direction)
        if section.isolates and isolating is None:
            isolating = section
    if isolating is None:
        return None
    return Verdict(False, isolating.policy, isolating.line, isolating.network, direction)


def _painted(steps: Sequence[_Step], protocol: Protocol) -> bytearray:
    """Return for each port 1 if it is open, else 0: the last line is painted first, and earlier ones over it."""
    open_ = bytearray(b"\1" * _PORTS)
    for step in reversed(steps):
        below = bytes(open_)
        if step.isolates:
            open_ = bytearray(_PORTS)
        for ports, action in reversed(step.lines):
            for one in ports or (Ports(protocol),):
                if one.protocol == protocol:
                    first, last = (one.first, one.last) if one.first else (0, _PORTS - 1)
                    plain = (b"\1" if action == "allow" else b"\0") * (last + 1 - first)
                    open_[first : last + 1] = below[first : last + 1] if action == "pass" else plain
    return open_
