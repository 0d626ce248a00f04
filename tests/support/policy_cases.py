"""Truth tables of policies as data: what a peer, a list of ports or several policies mean for nine containers.

The dimensions are those of Kubernetes' conformance suites for NetworkPolicy: peers by pod and by namespace with each
operator, addresses with exceptions, ports with ranges and protocols, both directions, and policies that meet.
Everything is about one container, so nine cases fit into the nine containers of a yard at the same time.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import msgspec

ALL = frozenset(f"{network}-{pod}" for network, pod in itertools.product("xyz", "abc"))
"""The nine containers."""
Open = frozenset[tuple[int, str]]
EVERY: Open = frozenset(itertools.product((80, 81), ("tcp", "udp")))


class Case(msgspec.Struct, frozen=True):
    """A case about one container: what a policy says in one direction, and who reaches it (or whom it reaches).

    ``rules`` are as in a policy file, with END for from or to. ``ends`` are the other containers by family, ``ports``
    what is open for them.
    """

    name: str
    direction: str
    rules: tuple[Mapping[str, object], ...]
    ends: Mapping[int, frozenset[str]]
    ports: Open = EVERY


END = "END"


def _of(words: str) -> frozenset[str]:
    """Return containers by patterns: ``x-*`` all of a network, ``*-a`` all with a name."""
    found = set()
    for word in words.split():
        network, _, pod = word.partition("-")
        found |= {one for one in ALL if network in ("*", one[0]) and pod in ("*", one[2])}
    return frozenset(found)


def _label(key: str, operator: str, *values: str) -> dict[str, object]:
    one: dict[str, object] = {"key": key, "operator": operator}
    return {"expressions": [one | ({"values": list(values)} if values else {})]}


_PEERS: tuple[tuple[str, list[object], str], ...] = (
    ("everybody with an empty selector", [{}], "*-*"),
    ("one label", [{"labels": {"pod": "a"}}], "*-a"),
    ("a label that nobody has", [{"labels": {"pod": "q"}}], ""),
    ("two labels", [{"labels": {"pod": "b", "ns": "y"}}], "y-b"),
    ("In", [_label("pod", "In", "a", "b")], "*-a *-b"),
    ("NotIn", [_label("pod", "NotIn", "a", "b")], "*-c"),
    ("NotIn of a key that nobody has", [_label("tier", "NotIn", "a")], "*-*"),
    ("In of a key that nobody has", [_label("tier", "In", "a")], ""),
    ("Exists", [_label("pod", "Exists")], "*-*"),
    ("Exists of a key that nobody has", [_label("tier", "Exists")], ""),
    ("DoesNotExist", [_label("pod", "DoesNotExist")], ""),
    ("DoesNotExist of a key that nobody has", [_label("tier", "DoesNotExist")], "*-*"),
    ("a label and an expression", [{"labels": {"pod": "a"}} | _label("ns", "NotIn", "x")], "y-a z-a"),
    ("one network", [{"network": "x"}], "x-*"),
    ("two networks", [{"network": ["x", "y"]}], "x-* y-*"),
    ("a network that does not exist", [{"network": "w"}], ""),
    ("a label in one network", [{"network": "y", "labels": {"pod": "a"}}], "y-a"),
    ("an expression in two networks", [{"network": ["y", "z"]} | _label("pod", "In", "b", "c")], "y-b y-c z-b z-c"),
    ("one name", [{"name": "z-c"}], "z-c"),
    ("two names, one in a network that it is not in", [{"name": ["z-c", "x-a"], "network": "x"}], "x-a"),
    ("a host that does not exist", [{"host": "nowhere"}], ""),
    ("the outside", ["outside"], ""),
    ("two peers", [{"labels": {"pod": "a"}}, {"network": "z"}], "*-a z-*"),
    ("the outside and a peer", ["outside", {"labels": {"pod": "c"}}], "*-c"),
)
_ADDRESSES: tuple[tuple[str, list[object], str, str], ...] = (
    ("all IPv4 addresses", [{"cidr": "0.0.0.0/0"}], "*-*", ""),
    ("all IPv6 addresses", [{"cidr": "::/0"}], "", "*-*"),
    ("a pool of each family", [{"cidr": "10.211.0.0/16"}, {"cidr": "fd00:212::/64"}], "x-*", "y-*"),
    ("a pool but for itself", [{"cidr": "10.211.0.0/16", "except": ["10.211.0.0/16"]}], "", ""),
    ("all but a pool", [{"cidr": "0.0.0.0/0", "except": ["10.212.0.0/16"]}], "x-* z-*", ""),
    ("all but two pools", [{"cidr": "::/0", "except": ["fd00:212::/64", "fd00:213::/64"]}], "", "x-*"),
    ("a pool that is excepted, and a peer", [{"cidr": "0.0.0.0/0", "except": ["10.211.0.0/16"]}, {"name": "x-b"}],
     "y-* z-* x-b", "x-b"),
    ("addresses outside", [{"cidr": "192.0.2.0/24"}], "", ""),
)  # fmt: skip
_PORTS: tuple[tuple[list[str], str], ...] = (
    (["80"], "80/tcp"),
    (["81/tcp"], "81/tcp"),
    (["80/udp"], "80/udp"),
    (["81/udp"], "81/udp"),
    (["80-81"], "80/tcp 81/tcp"),
    (["80-81/udp"], "80/udp 81/udp"),
    (["79-80"], "80/tcp"),
    (["81-90/udp"], "81/udp"),
    (["82-90"], ""),
    (["1-79/udp"], ""),
    (["1-65535"], "80/tcp 81/tcp"),
    (["tcp"], "80/tcp 81/tcp"),
    (["udp"], "80/udp 81/udp"),
    (["sctp"], ""),
    (["80/sctp"], ""),
    (["icmp"], ""),
    (["80", "80/udp"], "80/tcp 80/udp"),
    (["80", "81"], "80/tcp 81/tcp"),
    (["80", "81/udp"], "80/tcp 81/udp"),
    (["tcp", "80/udp"], "80/tcp 81/tcp 80/udp"),
    (["udp", "81"], "80/udp 81/udp 81/tcp"),
    (["80-80", "81-81/udp"], "80/tcp 81/udp"),
    (["79-80", "80-82"], "80/tcp 81/tcp"),
    (["79-80/udp", "82-90/udp"], "80/udp"),
    (["tcp", "81"], "80/tcp 81/tcp"),
    (["udp", "1-79/udp"], "80/udp 81/udp"),
    (["tcp", "udp"], "80/tcp 81/tcp 80/udp 81/udp"),
    (["icmp", "80/udp"], "80/udp"),
    (["sctp", "81"], "81/tcp"),
    (["80/tcp", "80/sctp"], "80/tcp"),
    (["1-80", "81-65535"], "80/tcp 81/tcp"),
    (["1-80/udp", "81-65535/udp"], "80/udp 81/udp"),
    (["65535", "1"], ""),
    (["80", "81", "80/udp", "81/udp"], "80/tcp 81/tcp 80/udp 81/udp"),
    ([], "80/tcp 81/tcp 80/udp 81/udp"),
)


_ENDS: tuple[tuple[list[object] | None, str], ...] = (([{"labels": {"pod": "c"}}], "*-c"), (None, "*-*"))


def _opened(words: str) -> Open:
    return frozenset((int(word.partition("/")[0]), word.partition("/")[2]) for word in words.split())


def _rule(peers: list[object] | None, ports: list[str], action: str = "allow") -> dict[str, object]:
    found: dict[str, object] = {"action": action}
    if peers is not None:
        found[END] = peers
    return found | ({"ports": ports} if ports else {})


_DIRECTIONS = ("ingress", "egress")
_TCP80 = _opened("80/tcp")


def peer_cases() -> list[Case]:
    """Return the cases about peers: with all ports, and with one, in both directions."""
    plain = [(name, peers, {4: _of(words), 6: _of(words)}) for name, peers, words in _PEERS]
    by_family = [(name, peers, {4: _of(four), 6: _of(six)}) for name, peers, four, six in _ADDRESSES]
    return [
        Case(f"{name}, {direction}{', one port' if ports else ''}", direction, (_rule(peers, ports),), ends, opened)
        for name, peers, ends in (*plain, *by_family)
        for direction in _DIRECTIONS
        for ports, opened in (([], EVERY), (["80"], _TCP80))
    ]


def port_cases() -> list[Case]:
    """Return the cases about ports, for everybody and for one label, in both directions."""
    return [
        Case(
            f"{', '.join(ports) or 'any port'}, {direction}{f', from {words}' if peers else ''}",
            direction,
            (_rule(peers, ports),),
            {4: _of(words), 6: _of(words)},
            _opened(open_),
        )
        for number, (ports, open_) in enumerate(_PORTS)
        for direction in _DIRECTIONS
        for peers, words in (_ENDS[number % 2],)
    ]


def rule_cases() -> list[Case]:
    """Return the cases about rules that meet: the first that matches decides."""
    a, x = {"labels": {"pod": "a"}}, {"network": "x"}
    every = {4: ALL, 6: ALL}
    none: dict[int, frozenset[str]] = {4: frozenset(), 6: frozenset()}
    without_a = {4: _of("*-b *-c"), 6: _of("*-b *-c")}
    x_alone = {4: _of("x-*"), 6: _of("x-*")}
    table: tuple[tuple[str, tuple[dict[str, object], ...], Mapping[int, frozenset[str]], Open], ...] = (
        ("no rule", (), none, EVERY),
        ("a rule for everybody", (_rule(None, []),), every, EVERY),
        ("a deny before an allow", (_rule([a], [], "deny"), _rule(None, [])), without_a, EVERY),
        ("an allow before a deny", (_rule(None, []), _rule([a], [], "deny")), every, EVERY),
        ("a deny alone isolates nobody", (_rule([a], [], "deny"),), without_a, EVERY),
        ("a deny of a port alone", (_rule(None, ["81", "udp"], "deny"),), every, _TCP80),
        ("a deny of everything, and an allow of a part", (_rule(None, [], "deny"), _rule([x], [])), none, EVERY),
        ("two allows of ports", (_rule([x], ["80"]), _rule([x], ["81/udp"])), x_alone, _opened("80/tcp 81/udp")),
        ("an allow within a deny", (_rule([x], []), _rule(None, [], "deny")), x_alone, EVERY),
    )
    return [
        Case(f"{name}, {direction}", direction, rules, ends, opened)
        for name, rules, ends, opened in table
        for direction in _DIRECTIONS
    ]
