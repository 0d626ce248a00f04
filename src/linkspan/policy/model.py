"""Policy model: selectors, peers, ports, rules, policies, and the cases of a policy file's tests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sized
from typing import Literal

import msgspec

from linkspan.core import icmp
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Invalid
from linkspan.core.model import NAME
from linkspan.policy import names

Action = Literal["allow", "deny"]
RuleAction = Literal["allow", "deny", "pass"]
Tier = Literal["admin", "normal", "baseline"]
TIERS: tuple[Tier, ...] = ("admin", "normal", "baseline")
"""In the order in which they are looked at."""
Protocol = Literal["tcp", "udp", "sctp", "icmp"]
Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]
Direction = Literal["ingress", "egress"]
DIRECTIONS: tuple[Direction, ...] = ("ingress", "egress")

ORDER = 100
"""The order of a policy that names none; lower ones come first."""
ORDERS = range(1 << 16)
LINES = range(1 << 20)
LONGEST_NAME = 63
"""Characters of a policy's name: a comment in nftables has 128 bytes (NFTNL_UDATA_COMMENT_MAXLEN)."""
LONGEST_TEXT = 316
"""Bytes of a label's key or value: Kubernetes' keys have a prefix of 253, a slash and 63."""
MOST = 256
"""Rules of a direction, peers or ports of a rule, and conditions of a selector."""
MOST_LINES = 4096
"""Lines of nftables that one direction of a policy may become: each peer with each port."""


class Requirement(msgspec.Struct, frozen=True):
    """A condition on one label, as Kubernetes' matchExpressions have it."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()


class Selector(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions that an endpoint meets all of; each of ``networks``, ``hosts`` and ``names`` has alternatives.

    Without any condition it selects every endpoint.
    """

    labels: dict[str, str] = {}
    expressions: tuple[Requirement, ...] = ()
    networks: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Return a name for what it selects."""
        return hashlib.blake2b(msgspec.json.encode(self, order="sorted"), digest_size=8).hexdigest()

    @property
    def keys(self) -> frozenset[str]:
        """Return the keys of the labels that it looks at."""
        return frozenset({*self.labels, *(one.key for one in self.expressions)})


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """The other end of a connection: endpoints, addresses but for some, everything outside all pools, or DNS names.

    Exactly one of ``select``, ``cidr``, ``outside`` and ``dns`` is given. A name means the addresses outside all pools
    that name servers answer for it (``policy/names.py``).
    """

    select: Selector | None = None
    cidr: str = ""
    excepts: tuple[str, ...] = ()
    outside: bool = False
    dns: tuple[str, ...] = ()


class Ports(msgspec.Struct, frozen=True):
    """Destination ports from ``first`` to ``last`` of a protocol; 0 and 0 mean the whole protocol.

    Of icmp both are the number of a request (``core/icmp.py``).
    """

    protocol: Protocol
    first: int = 0
    last: int = 0

    def __str__(self) -> str:
        if not self.first:
            return self.protocol
        if self.protocol == "icmp":
            return f"{icmp.name(self.first)}/icmp"
        span = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{span}/{self.protocol}"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule, which allows or denies; without ``peers`` everybody, without ``ports`` everything.

    In the tiers above and below the usual one a rule may also pass what it is about on to the next tier. ``line`` is
    that of the file from which it was read, 0 if it is not known.
    """

    action: RuleAction = "allow"
    peers: tuple[Peer, ...] = ()
    ports: tuple[Ports, ...] = ()
    line: int = 0


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy; a direction that it does not have (None) is none of its business.

    ``order`` is that within its tier. ``line`` is that of the file ``file`` at which it begins.
    """

    name: str
    select: Selector = Selector()
    ingress: tuple[Rule, ...] | None = None
    egress: tuple[Rule, ...] | None = None
    order: int = ORDER
    tier: Tier = "normal"
    file: str = ""
    line: int = 0

    def rules(self, direction: Direction) -> tuple[Rule, ...] | None:
        """Return the rules of a direction."""
        return self.ingress if direction == "ingress" else self.egress

    @property
    def every_rule(self) -> tuple[Rule, ...]:
        """The rules of both directions."""
        return (*(self.ingress or ()), *(self.egress or ()))

    @property
    def is_of_tiers(self) -> bool:
        """True if it needs agents that know tiers and requests of ICMP (``Host.tiers``)."""
        every = (port for rule in self.every_rule for port in rule.ports)
        return self.tier != "normal" or any(port.protocol == "icmp" and port.first for port in every)

    @property
    def names(self) -> frozenset[str]:
        """The DNS names that its rules are about."""
        every = (peer for rule in self.every_rule for peer in rule.peers)
        return frozenset(name for peer in every for name in peer.dns)

    def isolates(self, direction: Direction) -> bool:
        """Return whether what no rule matches is refused: it has the direction, and does not only deny.

        In the tiers above and below the usual one no policy does that.
        """
        rules = self.rules(direction)
        if self.tier != "normal" or rules is None:
            return False
        return not rules or any(rule.action == "allow" for rule in rules)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A test in a policy file: whether ``source`` reaches ``target`` at a port ("80/tcp"; "": at any).

    An end is the name or an address of a running container, an address outside, the word ``outside``, or (``labels``
    and ``network``) an endpoint that need not exist. ``file`` and ``line`` say where the case is written.
    """

    source: End
    target: End
    port: str = ""
    expect: Action = "allow"
    line: int = 0
    file: str = ""


class End(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One end of a case."""

    name: str = ""
    network: str = ""
    labels: dict[str, str] = {}

    def __str__(self) -> str:
        if self.name:
            return self.name
        words = [f"{key}={value}" for key, value in sorted(self.labels.items())]
        return f"{{{', '.join([f'network={self.network}', *words])}}}"


class Subject(msgspec.Struct, frozen=True):
    """An endpoint as selectors see it; ``host`` is the name of its host."""

    name: str
    network: str
    host: str
    labels: Mapping[str, str]


def selects(selector: Selector, subject: Subject) -> bool:
    """Return whether an endpoint meets all conditions of a selector."""
    if selector.networks and subject.network not in selector.networks:
        return False
    if selector.hosts and subject.host not in selector.hosts:
        return False
    if selector.names and subject.name not in selector.names:
        return False
    if any(subject.labels.get(key) != value for key, value in selector.labels.items()):
        return False
    return all(_meets(one, subject.labels.get(one.key)) for one in selector.expressions)


def _meets(required: Requirement, value: str | None) -> bool:
    """As Kubernetes: an endpoint without the label meets NotIn."""
    match required.operator:
        case "In":
            return value is not None and value in required.values
        case "NotIn":
            return value is None or value not in required.values
        case "Exists":
            return value is not None
    return value is None


def checked(policy: Policy) -> Policy:
    """Return a policy that may be enforced. Raises Invalid with the policy's name, the rule and the reason."""
    if not NAME.fullmatch(policy.name) or len(policy.name) > LONGEST_NAME:
        raise Invalid(
            f"{policy.name!r} is no name of a policy",
            f"use at most {LONGEST_NAME} letters, digits, _ . - and begin with a letter or digit",
        )
    try:
        _within("its order", policy.order, ORDERS)
        _within("its line", policy.line, LINES)
        _short("its file's name", policy.file)
        _check_selector(policy.select)
        for direction in DIRECTIONS:
            rules = policy.rules(direction) or ()
            _few(f"rules of {direction}", rules)
            lines = sum(_ends(rule) * max(len(rule.ports), 1) for rule in rules)
            if lines > MOST_LINES:
                raise Invalid(
                    f"the rules of {direction} have {lines} pairs of a peer and a port, and may have {MOST_LINES}",
                    "divide it into several policies",
                )
            for number, rule in enumerate(rules, 1):
                try:
                    if rule.action == "pass" and policy.tier == "normal":
                        raise Invalid("pass needs a tier", "write tier: admin or tier: baseline in the policy")
                    _check_rule(rule)
                    _check_names(rule, direction)
                except Invalid as error:
                    where = f"line {rule.line}" if rule.line else f"rule {number} of {direction}"
                    raise error.within(where) from error
    except Invalid as error:
        raise error.within(f"policy {policy.name}") from error
    return policy


def _check_rule(rule: Rule) -> None:
    _within("its line", rule.line, LINES)
    _few("peers", rule.peers)
    _few("ports", rule.ports)
    for peer in rule.peers:
        if (peer.select is not None) + bool(peer.cidr) + peer.outside + bool(peer.dns) != 1:
            what = "a peer is either endpoints, or a CIDR, or the outside, or DNS names"
            raise Invalid(what, "write one of them for each peer")
        if peer.select is not None:
            _check_selector(peer.select)
        if peer.excepts and not peer.cidr:
            raise Invalid("except belongs to a cidr", "write cidr: 192.0.2.0/24 beside it")
        _few("exceptions", peer.excepts)
        if peer.cidr:
            whole = network_of(peer.cidr)
            for text in peer.excepts:
                if not whole.holds(network_of(text)):
                    raise Invalid(f"except {text} is not within {peer.cidr}", "give a part of the CIDR")
    for one in rule.ports:
        if one.protocol == "icmp":
            if one.first != one.last or one.first not in (0, *icmp.REQUESTS):
                raise Invalid(f"{one.first} to {one.last} is no type of icmp", f"write icmp, or {_REQUESTS}")
        elif (one.first or one.last) and not 1 <= one.first <= one.last <= 65535:
            raise Invalid(f"ports {one.first}-{one.last} are no range", "give 1 to 65535, the lower one first")


def _ends(rule: Rule) -> int:
    """Return how many other ends a rule names: each DNS name is one."""
    return max(sum(max(len(peer.dns), 1) for peer in rule.peers), 1)


def _check_names(rule: Rule, direction: Direction) -> None:
    """Refuse DNS names where they could not hold: their addresses are known only once somebody has asked."""
    for peer in rule.peers:
        _few("DNS names", peer.dns)
        for text in peer.dns:
            if names.name(text) != text:
                raise Invalid(f"DNS name {text!r} is not as DNS has it", f"write {names.name(text)}")
        if peer.dns and direction == "ingress":
            what = "an ingress rule names no client by DNS: a client's address does not say by which name it is called"
            raise Invalid(what, "write cidr:, outside, or labels")
        if peer.dns and rule.action != "allow":
            what = f"a rule with {rule.action} has no DNS names: an address counts only once its name was asked for"
            raise Invalid(what, "allow the names that are meant, and close the rest")


def _check_selector(selector: Selector) -> None:
    for what in (selector.labels, selector.expressions, selector.networks, selector.hosts, selector.names):
        _few("conditions", what)
    for pair in selector.labels.items():
        for text in pair:
            _short("a label", text)
    for one in selector.expressions:
        _few("values", one.values)
        for text in (one.key, *one.values):
            _short("a label", text)
        if (one.operator in ("In", "NotIn")) != bool(one.values):
            words = "needs values" if not one.values else "takes no values"
            raise Invalid(f"{one.operator} of label {one.key} {words}", "In and NotIn have values, the others none")
    for text in (*selector.networks, *selector.hosts, *selector.names):
        _short("a name", text)


def network_of(cidr: str) -> Prefix:
    """Return a CIDR without bits after its length, which is optional. Raises Invalid."""
    found = prefix(cidr)
    if found.network() != found:
        raise Invalid(f"{cidr} has bits after its length", f"write {found.network()}")
    return found


def ports(text: str) -> Ports:
    """Return 80/tcp, 8000-8010/udp, tcp or echo-request/icmp as ports; without a protocol it is tcp. Raises Invalid."""
    span, slash, protocol = text.strip().lower().partition("/")
    if protocol == "icmp":
        if span not in icmp.NUMBERS:
            hint = f"write icmp, or {_REQUESTS}; answers and errors pass with their flow, without a rule"
            raise Invalid(f"{text!r} names no request of icmp", hint)
        return Ports("icmp", icmp.NUMBERS[span], icmp.NUMBERS[span])
    if not slash and span in ("tcp", "udp", "sctp", "icmp"):
        return Ports(msgspec.convert(span, Protocol))
    first, dash, last = span.partition("-")
    numbers = (first, last if dash else first)
    written = all(word.isascii() and word.isdigit() and len(word) < 6 for word in numbers)
    if not written or protocol not in ("", "tcp", "udp", "sctp"):
        hint = "write 80/tcp, 8000-8010/udp, echo-request/icmp, or a whole protocol: tcp, udp, sctp, icmp"
        raise Invalid(f"{text!r} is no port", hint)
    found = Ports(msgspec.convert(protocol or "tcp", Protocol), int(numbers[0]), int(numbers[1]))
    if not 1 <= found.first <= found.last <= 65535:
        raise Invalid(f"{text!r} is no port", "ports are 1 to 65535, the lower one first")
    return found


_REQUESTS = ", ".join(f"{name}/icmp" for name in icmp.NUMBERS)


def _few(what: str, values: Sized) -> None:
    if len(values) > MOST:
        raise Invalid(f"it has {len(values)} {what}, and may have {MOST}", "divide it into several policies")


def _short(what: str, text: str) -> None:
    if len(text.encode(errors="surrogateescape")) > LONGEST_TEXT:
        raise Invalid(f"{what} has more than {LONGEST_TEXT} bytes", "shorten it")


def _within(what: str, number: int, allowed: range) -> None:
    if number not in allowed:
        raise Invalid(f"{what} is {number}", f"give {allowed[0]} to {allowed[-1]}")
