"""Rules: policies as sets and chains of nftables. The head of the package says how they look, and why."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from linkspan.core import icmp
from linkspan.core.addresses import Prefix
from linkspan.core.ruleset import BRIDGE, INET, TABLE, pool_text
from linkspan.core.states.host import NftChain, NftSet, State
from linkspan.policy import name_rules
from linkspan.policy.judge import LINK_LOCAL, Clause, Match, Section
from linkspan.policy.model import DIRECTIONS, Direction, Ports
from linkspan.policy.readings import KNOWN, PORTS, RECEIVERS, TALLIES, Reading, chosen_set, readings
from linkspan.policy.regime import Regime
from linkspan.policy.regime_difference import Part

_IP, _TYPE = {4: "ip", 6: "ip6"}, {4: "ipv4_addr", 6: "ipv6_addr"}
_NFPROTO = {4: "ipv4", 6: "ipv6"}
_ICMP, _MESSAGE = {4: "icmp", 6: "ipv6-icmp"}, {4: "icmp type", 6: "icmpv6 type"}
_LINK: dict[Direction, str] = {"ingress": "oifname", "egress": "iifname"}
_OWN: dict[Direction, str] = {"ingress": "daddr", "egress": "saddr"}
_OTHER: dict[Direction, str] = {"ingress": "saddr", "egress": "daddr"}
_OPPOSITE: dict[Direction, Direction] = {"ingress": "egress", "egress": "ingress"}
_BRIDGES = "ls-*"
_LINKS = ("lsr*", _BRIDGES)
"""The links of containers: those of routed ones, and bridges, by which a bridge's own frames come and go, too."""
_REJECT = "reject with icmpx admin-prohibited"
GROUP = 7615
"""The group of nflog to which refused packets are logged; nobody pays for it while nobody listens."""
ENFORCED, STAGED = "linkspan refused", "linkspan staged"
"""The log's prefixes of packets that were refused, and of those that staged policies would refuse."""
_PORT_TYPE = "inet_proto . inet_service"
_PORT_KEYS = {
    "": ("meta l4proto . th dport", "meta l4proto . th sport"),
    "_at": ("{ip} daddr . meta l4proto . th dport", "{ip} saddr . meta l4proto . th sport"),
}
"""Keys of ports of the host, at all its addresses and at one: of packets to it, and of its answers."""
_REMEMBERED = 7 * 86400
"""Seconds for which a count of what staged policies would refuse is kept after its last packet."""
_WITH_PORTS = "{ tcp, udp, sctp }"
_COUNTED = {4: "{ icmp, tcp, udp, sctp }", 6: "{ tcp, udp, ipv6-icmp, sctp }"}
"""The protocols that are counted with a port or a request, in nft's order."""
_STRAY = "ct state new tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset"
"""It begins no connection, and belongs to none: connection tracking would make one of it (nf_conntrack_tcp_loose).

A late packet of a known connection is no such packet but an invalid one: a reset would end the connection.
"""
_INVALID = "ct state invalid drop"
_LONGEST = 128
"""Bytes of a comment (NFTNL_UDATA_COMMENT_MAXLEN in libnftnl)."""
_NEIGHBOURS = "ip6 hoplimit 255 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
"""On a bridge containers find each other by these, whatever policies say."""


def common(
    regime: Regime, families: Iterable[int], *, logs: bool = True, ports: bool = False
) -> Iterator[State]:
    """Return the sets and chains that do not grow with policies, for the families of the networks' pools.

    There are none without policies. ``logs`` says whether this kernel has nflog, ``ports`` whether policies may be
    about ports of containers on the host's own network.
    """
    wanted = sorted(set(families))
    if not regime or not wanted:
        return
    every = readings(regime)
    for family in wanted:
        yield NftSet(INET, TABLE, KNOWN[family], _TYPE[family])
        for reading, direction in itertools.product(every, DIRECTIONS):
            yield NftSet(INET, TABLE, reading.subjects(direction, family), _TYPE[family])
            for after in ("", *reading.passing(direction)):
                yield NftSet(INET, TABLE, reading.ways(direction, family, after), _TYPE[family], "verdict")
    for reading in every:
        patient = wanted if regime.names else []
        yield from _counted(wanted, logs=logs) if not reading.enforces else (_refused(patient, logs=logs),)
        for direction in DIRECTIONS:
            if reading.judge.sections[direction]:
                yield from _of_direction(reading, direction, wanted, ports=ports)
        if ports and reading.judge.sections["ingress"]:
            yield from _of_ports(reading, wanted)
    if regime.names:
        yield from name_rules.states(wanted, logs=logs)


def states(regime: Regime, part: Part, families: Iterable[int]) -> Iterator[State]:
    """Return the chains of a part of a regime, and the sets of its peers."""
    (reading,) = (one for one in readings(regime) if one.name == part.reading)
    section, direction = part.section, part.direction
    for family in sorted(set(families)):
        for digest in dict.fromkeys(peer.digest for clause in section.clauses for peer in clause.peers if peer.digest):
            yield NftSet(INET, TABLE, chosen_set(digest, family), _TYPE[family])
        if section.clauses:
            lines = (_clause(reading, section, clause, direction, family) for clause in section.clauses)
            name = reading.of(section, direction, family)
            yield NftChain(INET, TABLE, name, "", tuple(itertools.chain.from_iterable(lines)))
        if section.isolates:
            line = f"{reading.refuses(family)}{_comment(section, section.line)}"
            yield NftChain(INET, TABLE, reading.otherwise(section, direction, family), "", (line,))


def bridge_states(regime: Regime, families: Iterable[int]) -> Iterator[State]:
    """Return the sets and chains of the bridge family: a port under ingress takes no packet that is not for it.

    Otherwise a container would reach its neighbours past their policies by broadcasts, multicasts, and packets with
    such an address in a frame to one of them.
    """
    wanted = sorted(set(families))
    if not wanted or not regime.judge.sections["ingress"]:
        return
    yield NftSet(BRIDGE, TABLE, PORTS, "ifname")
    rules = []
    for family in wanted:
        receivers = f"{RECEIVERS}{family}"
        yield NftSet(BRIDGE, TABLE, receivers, f"ifname . {_TYPE[family]}")
        rules += [_NEIGHBOURS] if family == LINK_LOCAL.family else []
        rules.append(f"oifname . {_IP[family]} daddr != @{receivers} drop")
    yield NftChain(BRIDGE, TABLE, "policy_port", "", tuple(rules))
    hook = "type filter hook forward priority filter; policy accept;"
    yield NftChain(BRIDGE, TABLE, "policy_ports", hook, (f"oifname @{PORTS} jump policy_port",))


def _of_direction(reading: Reading, direction: Direction, families: list[int], *, ports: bool) -> Iterator[State]:
    link, own = _LINK[direction], _OWN[direction]
    back, other = _LINK[_OPPOSITE[direction]], _OTHER[direction]
    rules = ["ct state established,related accept", *([_NEIGHBOURS] if 6 in families else [])]
    for family in families:
        ip, subjects = _IP[family], f"@{reading.subjects(direction, family)}"
        for name in _LINKS:
            rules.append(f'{link} "{name}" {ip} {own} {subjects} jump {reading.chain(direction, family)}')
            if reading.enforces:
                # Whoever speaks first after a cut: else an answer would begin a connection that nobody judges.
                rules.append(f'{back} "{name}" {ip} {other} {subjects} {_STRAY}')
        yield from _of_family(reading, direction, family, ports=ports and direction == "ingress")
    hook = f"type filter hook forward priority filter + {reading.priority + DIRECTIONS[::-1].index(direction)};"
    yield NftChain(INET, TABLE, reading.chain(direction), f"{hook} policy accept;", tuple(rules))


def _of_family(reading: Reading, direction: Direction, family: int, *, ports: bool) -> Iterator[State]:
    ip, own = _IP[family], _OWN[direction]
    silent = [f"{match} {ip} {_OTHER[direction]} != @{KNOWN[family]}" for match in _near(direction, family)]
    if direction == "egress":
        # To its neighbours by an address that none of them has: a broadcast or multicast, above all.
        silent.append(f'oifname "{_BRIDGES}" {_not_near(direction, family)}')
    way = f"{ip} {own} vmap @{reading.ways(direction, family)}"
    rules = (*_silenced(reading, silent), way, *reading.lost)
    yield NftChain(INET, TABLE, reading.chain(direction, family), "", rules)
    for tier in reading.passing(direction):
        ways = [f"{ip} {own} vmap @{reading.ways(direction, family, tier)}"]
        if ports:  # only at input, where no packet for a container comes
            ways += [f"fib daddr type local {way}" for way in _port_ways(reading, family, tier)]
        yield NftChain(INET, TABLE, reading.after(tier, direction, family), "", (*ways, *(reading.lost or ("accept",))))


def _silenced(reading: Reading, silent: Iterable[str]) -> list[str]:
    """Return the rules before all policies: for packets of no connection, and for those of nobody that is known."""
    rules = [f"{match} {'drop' if reading.enforces else 'accept'}" for match in silent]
    return [_INVALID, _STRAY, *rules] if reading.enforces else rules


def _of_ports(reading: Reading, families: list[int]) -> Iterator[State]:
    """Yield the sets and chains for ports of containers on the host's own network, whose packets come to the host.

    Their policies' chains are those of ingress.
    """
    first = "ct state established,related accept"
    arriving, answering = [first, 'iifname "lo" accept'], [first, 'oifname "lo" accept']
    stray = reading.chain("egress", "_stray")
    for family in families:
        ip, type_ = _IP[family], _TYPE[family]
        chain = reading.chain("ingress", f"{family}_port")
        for at, keys in _PORT_KEYS.items():
            key = f"{type_} . {_PORT_TYPE}" if at else _PORT_TYPE
            yield NftSet(INET, TABLE, reading.ports(family, at), key)
            for after in ("", *reading.passing("ingress")):
                yield NftSet(INET, TABLE, reading.port_ways(family, at, after), key, "verdict")
            head = "" if at else f"meta nfproto {_NFPROTO[family]} "  # an address says the family, too
            target, source = (head + key.format(ip=ip) for key in keys)
            ports = f"@{reading.ports(family, at)}"
            arriving.append(f"{target} {ports} jump {chain}")
            answering.append(f"{source} {ports} jump {stray}")
        silent = [f"{ip} saddr @pools{family} {ip} saddr != @{KNOWN[family]}"]
        if family == LINK_LOCAL.family:
            # By such an address of another link a stranger could seem to be a container on a bridge.
            silent.append(f'iifname != "{_BRIDGES}" ip6 saddr {LINK_LOCAL}')
        rules = [*_silenced(reading, silent), *_port_ways(reading, family), *reading.lost]
        yield NftChain(INET, TABLE, chain, "", tuple(rules))
    hook = f"priority filter + {reading.priority}; policy accept;"
    yield NftChain(INET, TABLE, reading.chain("ingress", "_ports"), f"type filter hook input {hook}", tuple(arriving))
    if reading.enforces:  # as in ``_of_direction``: whoever speaks first after a cut
        yield NftChain(INET, TABLE, stray, "", (_STRAY,))  # nft would list such a rule without its family
        name = reading.chain("egress", "_ports")
        yield NftChain(INET, TABLE, name, f"type filter hook output {hook}", tuple(answering))


def _port_ways(reading: Reading, family: int, after: str = "") -> Iterator[str]:
    """Yield the rules that lead from a packet's port to the chain of its policies: the port at one address first."""
    for at, (target, _) in reversed(_PORT_KEYS.items()):
        yield f"{target.format(ip=_IP[family])} vmap @{reading.port_ways(family, at, after)}"


def _near(direction: Direction, family: int) -> Iterator[str]:
    """Yield the conditions by which the other end is an address that only a container or a host can have."""
    at = f"{_IP[family]} {_OTHER[direction]}"
    yield f"{at} @pools{family}"
    if family == LINK_LOCAL.family:
        yield f"{at} {LINK_LOCAL}"


def _not_near(direction: Direction, family: int) -> str:
    """Return the condition by which the other end is no such address."""
    at = f"{_IP[family]} {_OTHER[direction]}"
    return f"{at} != @pools{family}" + (f" {at} != {LINK_LOCAL}" if family == LINK_LOCAL.family else "")


def _refused(patient: Iterable[int], *, logs: bool) -> NftChain:
    """Return the chain to which each rule that refuses leads; ``patient`` families have peers by DNS names."""
    waits = (name_rules.patient(_not_near("egress", family), family) for family in patient)
    return NftChain(INET, TABLE, "policy_refused", "", (*_log(ENFORCED, logs=logs), *waits, _REJECT))


def _counted(families: list[int], *, logs: bool) -> Iterator[State]:
    """Yield the chains and sets that count what staged policies would refuse."""
    for family in families:
        ip, ends = _IP[family], f"{_TYPE[family]} . {_TYPE[family]} . inet_proto"
        pair = f"{ip} saddr . {ip} daddr . meta l4proto"
        ports, hosts = (f"{name}{family}" for name in TALLIES)
        yield NftSet(INET, TABLE, ports, f"{ends} . inet_service", dynamic=True, timeout=_REMEMBERED)
        yield NftSet(INET, TABLE, hosts, ends, dynamic=True, timeout=_REMEMBERED)
        names = {number: of[family] for number, of in icmp.REQUESTS.items() if family in of}
        rules = (
            f"meta l4proto {_WITH_PORTS} update @{ports} {{ {pair} . th dport counter }}",
            *(
                f"{_MESSAGE[family]} {name} update @{ports} {{ {pair} . {number} counter }}"
                for number, name in names.items()
            ),
            f"meta l4proto != {_COUNTED[family]} update @{hosts} {{ {pair} counter }}",
            f"{_MESSAGE[family]} != {_either(names.values())} update @{hosts} {{ {pair} counter }}",
            *_log(STAGED, logs=logs),
            "accept",
        )
        yield NftChain(INET, TABLE, f"staged_refused{family}", "", rules)


def _log(prefix: str, *, logs: bool) -> list[str]:
    return [f'limit rate 20/second burst 100 packets log prefix "{prefix}" group {GROUP} snaplen 128'] if logs else []


def _clause(
    reading: Reading, section: Section, clause: Clause, direction: Direction, family: int
) -> Iterator[str]:
    passed = f"goto {reading.after(section.tier, direction, family)}"
    verdict = {"allow": "accept", "deny": reading.refuses(family), "pass": passed}[clause.action]
    for peer in _peers(clause.peers, direction, family) if clause.peers else ("",):
        for port in _ports(clause.ports, family) if clause.ports else ("",):
            yield f"{peer}{port}{verdict}{_comment(section, clause.line or section.line)}"


def _peers(peers: Iterable[Match], direction: Direction, family: int) -> Iterator[str]:
    at = f"{_IP[family]} {_OTHER[direction]}"
    for peer in peers:
        if peer.outside:
            yield f"{_not_near(direction, family)} "
        elif peer.name:
            yield f"{name_rules.condition(peer.name, family)} {_not_near(direction, family)} "
        elif peer.prefix is None:
            yield f"{at} @{chosen_set(peer.digest, family)} "
        elif peer.prefix.family == family:
            besides = f"{at} != {_either(map(pool_text, _apart(peer.excepts)))} " if peer.excepts else ""
            yield f"{at} {pool_text(peer.prefix)} {besides}"


def _apart(prefixes: Iterable[Prefix]) -> list[Prefix]:
    """Return prefixes as nft lists them, without those that are within others: its sets have no overlapping parts."""
    found: list[Prefix] = []
    for one in sorted(prefixes, key=lambda prefix: (prefix.packed, prefix.length)):
        if not (found and found[-1].holds(one)):
            found.append(one)
    return found


def _ports(ports: Iterable[Ports], family: int) -> Iterator[str]:
    """Yield one condition for each protocol; spans that meet are one, because nft refuses overlapping ones."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for one in sorted(ports, key=lambda port: (port.protocol, port.first)):
        known = spans.setdefault(one.protocol, [])
        if known and known[-1][0] and one.first <= known[-1][1] + 1:
            known[-1] = known[-1][0], max(known[-1][1], one.last)
        elif not known or known[-1][0]:  # else it is the whole protocol already, which sorts first
            known.append((one.first, one.last))
    for protocol, known in spans.items():
        if known[0][0] and protocol == "icmp":
            names = [icmp.REQUESTS[number].get(family, "") for number, _ in known]
            if named := [name for name in names if name]:
                yield f"{_MESSAGE[family]} {_either(named)} "
            continue
        if not known[0][0]:
            yield f"meta l4proto {_ICMP[family] if protocol == 'icmp' else protocol} "
            continue
        texts = [str(first) if first == last else f"{first}-{last}" for first, last in known]
        yield f"{protocol} dport {_either(texts)} "


def _either(texts: Iterable[str]) -> str:
    """Return one text as it is, and several as a set of nft's."""
    every = list(texts)
    return every[0] if len(every) == 1 else f"{{ {', '.join(every)} }}"


def _comment(section: Section, line: int) -> str:
    """Return the comment that says in a rule whose it is; a trace shows it."""
    text = section.called + (f" line {line}" if line else "")
    return f' comment "{text[:_LONGEST]}"'
