"""Rules: policies as sets and chains of nftables. The package's docstring says how they look, and why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import msgspec

from linkspan.core import icmp
from linkspan.core.addresses import Prefix
from linkspan.core.ruleset import BRIDGE, INET, TABLE, element, pool_text
from linkspan.core.states.host import BridgeFilter, NftChain, NftElement, NftSet, State
from linkspan.policy.judge import LINK_LOCAL, Clause, Judge, Match, Section
from linkspan.policy.model import DIRECTIONS, Direction, Ports
from linkspan.policy.regime import Regime

_IP, _TYPE = {4: "ip", 6: "ip6"}, {4: "ipv4_addr", 6: "ipv6_addr"}
_ICMP, _MESSAGE = {4: "icmp", 6: "ipv6-icmp"}, {4: "icmp type", 6: "icmpv6 type"}
_SHORT: dict[Direction, str] = {"ingress": "in", "egress": "out"}
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
TALLIES = ("staged_ports", "staged_hosts")
"""The sets that count what staged policies would refuse: by both addresses, protocol and port; without a port.

The port of an ICMP request is its number (``core/icmp.py``).
"""
_PORTS, _RECEIVERS = "filtered_ports", "receivers"
"""Sets of the bridge family: ports of containers under ingress, and the addresses that each may get packets for."""
_REMEMBERED = 7 * 86400
"""Seconds for which such a count is kept after its last packet."""
_WITH_PORTS = "{ tcp, udp, sctp }"
_COUNTED = {4: "{ icmp, tcp, udp, sctp }", 6: "{ tcp, udp, ipv6-icmp, sctp }"}
"""The protocols that are counted with a port or a request, in nft's order."""
_KNOWN = "policy_known"
_STRAY = "ct state new tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset"
"""It begins no connection, and belongs to none: connection tracking would make one of it (nf_conntrack_tcp_loose).

A late packet of a known connection is no such packet but an invalid one: a reset would end the connection.
"""
_INVALID = "ct state invalid drop"
_LONGEST = 128
"""Bytes of a comment (NFTNL_UDATA_COMMENT_MAXLEN in libnftnl)."""
_NEIGHBOURS = "ip6 hoplimit 255 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
"""On a bridge containers find each other by these, whatever policies say."""


class _Reading(msgspec.Struct, frozen=True):
    """One reading of all policies, in chains of its own: what is enforced, or what is only counted.

    ``sets`` begins the names of the sets of addresses whose packets pass its chains. ``priority`` is that of egress;
    ingress follows.
    """

    judge: Judge
    name: str
    sets: str
    priority: int

    @property
    def enforces(self) -> bool:
        """Whether it refuses anything."""
        return self.name == "policy"

    def chain(self, direction: Direction, family: int | str = "") -> str:
        """Return the name of a chain."""
        return f"{self.name}_{_SHORT[direction]}{family}"

    def refuses(self, family: int) -> str:
        """Return the verdict of a rule that refuses."""
        return f"counter goto {'policy_refused' if self.enforces else f'staged_refused{family}'}"


def _readings(regime: Regime) -> list[_Reading]:
    """Return the readings that have policies; after ``forward``, whose order does not matter: a drop is final.

    Staged policies come last: what the others refuse is not theirs.
    """
    every = _Reading(regime.judge, "policy", "policed", 5), _Reading(regime.trial, "staged", "watched", 7)
    return [reading for reading in every if reading.judge]


def states(regime: Regime, families: Iterable[int], *, logs: bool = True) -> Iterator[State]:
    """Return the sets and chains of all policies, for the families of the networks' pools; none without policies.

    ``logs`` says whether this kernel has nflog.
    """
    wanted = sorted(set(families))
    if not regime or not wanted:
        return
    readings = _readings(regime)
    for family in wanted:
        subjects = (f"{reading.sets}_{_SHORT[direction]}" for reading in readings for direction in DIRECTIONS)
        for name in (_KNOWN, *subjects):
            yield NftSet(INET, TABLE, f"{name}{family}", _TYPE[family])
        for digest in regime.selectors:
            yield NftSet(INET, TABLE, _chosen(digest, family), _TYPE[family])
    for reading in readings:
        yield from _counted(wanted, logs=logs) if not reading.enforces else (_refused(logs=logs),)
        for direction in DIRECTIONS:
            if reading.judge.sections[direction]:
                yield from _of_direction(reading, direction, wanted)


def bridge_states(regime: Regime, families: Iterable[int]) -> Iterator[State]:
    """Return the sets and chains of the bridge family: a port under ingress takes no packet that is not for it.

    Otherwise a container would reach its neighbours past their policies by broadcasts, multicasts, and packets with
    such an address in a frame to one of them.
    """
    wanted = sorted(set(families))
    if not wanted or not regime.judge.sections["ingress"]:
        return
    yield NftSet(BRIDGE, TABLE, _PORTS, "ifname")
    rules = []
    for family in wanted:
        receivers = f"{_RECEIVERS}{family}"
        yield NftSet(BRIDGE, TABLE, receivers, f"ifname . {_TYPE[family]}")
        rules += [_NEIGHBOURS] if family == LINK_LOCAL.family else []
        rules.append(f"oifname . {_IP[family]} daddr != @{receivers} drop")
    yield NftChain(BRIDGE, TABLE, "policy_port", "", tuple(rules))
    hook = "type filter hook forward priority filter; policy accept;"
    yield NftChain(BRIDGE, TABLE, "policy_ports", hook, (f"oifname @{_PORTS} jump policy_port",))


def bridge_elements(
    regime: Regime, chosen: frozenset[str], port: str, addresses: Iterable[Prefix]
) -> Iterator[NftElement]:
    """Return the elements of the bridge family for a container's port with its addresses."""
    if not chosen.isdisjoint(regime.judge.subjects["ingress"]):
        yield element(_PORTS, port, table=BRIDGE)
        yield from (element(f"{_RECEIVERS}{one.family}", port, one.address, table=BRIDGE) for one in addresses)


def _of_direction(reading: _Reading, direction: Direction, families: list[int]) -> Iterator[State]:
    link, own = _LINK[direction], _OWN[direction]
    back, other = _LINK[_OPPOSITE[direction]], _OTHER[direction]
    rules = ["ct state established,related accept", *([_NEIGHBOURS] if 6 in families else [])]
    for family in families:
        ip, subjects = _IP[family], f"@{reading.sets}_{_SHORT[direction]}{family}"
        for name in _LINKS:
            rules.append(f'{link} "{name}" {ip} {own} {subjects} jump {reading.chain(direction, family)}')
            if reading.enforces:
                # Whoever speaks first after a cut: else an answer would begin a connection that nobody judges.
                rules.append(f'{back} "{name}" {ip} {other} {subjects} {_STRAY}')
        yield from _of_family(reading, direction, family)
    hook = f"type filter hook forward priority filter + {reading.priority + DIRECTIONS[::-1].index(direction)};"
    yield NftChain(INET, TABLE, reading.chain(direction), f"{hook} policy accept;", tuple(rules))


def _of_family(reading: _Reading, direction: Direction, family: int) -> Iterator[State]:
    ip, own = _IP[family], _OWN[direction]
    silent = [f"{match} {ip} {_OTHER[direction]} != @{_KNOWN}{family}" for match in _near(direction, family)]
    if direction == "egress":
        # To its neighbours by an address that none of them has: a broadcast or multicast, above all.
        silent.append(f'oifname "{_BRIDGES}" {_not_near(direction, family)}')
    rules = [f"{match} {'drop' if reading.enforces else 'accept'}" for match in silent]
    if reading.enforces:
        rules = [_INVALID, _STRAY, *rules]
    entry = name = reading.chain(direction, family)
    for sections in reading.judge.tiers[direction]:
        passes = any(clause.action == "pass" for section in sections for clause in section.clauses)
        after = f"{entry}_after_{sections[0].tier}" if passes else ""
        for section in sections:
            if section.clauses:
                own_chain, subject = f"{entry}_{_digest(section.policy)}", _chosen(section.subject, family)
                rules.append(f'{ip} {own} @{subject} jump {own_chain} comment "policy {section.policy}"')
                lines = (_clause(reading, section, clause, direction, family, after) for clause in section.clauses)
                yield NftChain(INET, TABLE, own_chain, "", tuple(line for some in lines for line in some))
        rules += [
            f"{ip} {own} @{_chosen(section.subject, family)} {reading.refuses(family)}{comment(section, section.line)}"
            for section in sections
            if section.isolates
        ]
        if passes:
            yield NftChain(INET, TABLE, name, "", (*rules, f"goto {after}"))
            name, rules = after, []
    # A policy's chain goes to the next tier, and must not come back to the policies after it.
    yield NftChain(INET, TABLE, name, "", tuple(rules) if name == entry else (*rules, "accept"))


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


def _refused(*, logs: bool) -> NftChain:
    """Return the chain to which each rule that refuses leads."""
    return NftChain(INET, TABLE, "policy_refused", "", (*_log(ENFORCED, logs=logs), _REJECT))


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
    reading: _Reading, section: Section, clause: Clause, direction: Direction, family: int, after: str
) -> Iterator[str]:
    """Yield the rules of a clause; ``after`` is the chain of what comes after its tier."""
    verdicts = {"allow": "accept", "deny": reading.refuses(family), "pass": f"goto {after}"}
    verdict = verdicts[clause.action]
    for peer in _peers(clause.peers, direction, family) if clause.peers else ("",):
        for port in _ports(clause.ports, family) if clause.ports else ("",):
            yield f"{peer}{port}{verdict}{comment(section, clause.line or section.line)}"


def _peers(peers: Iterable[Match], direction: Direction, family: int) -> Iterator[str]:
    at = f"{_IP[family]} {_OTHER[direction]}"
    for peer in peers:
        if peer.outside:
            yield f"{_not_near(direction, family)} "
        elif peer.prefix is None:
            yield f"{at} @{_chosen(peer.digest, family)} "
        elif peer.prefix.family == family:
            yield "".join([f"{at} {pool_text(peer.prefix)} ", *(f"{at} != {pool_text(p)} " for p in peer.excepts)])


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


def comment(section: Section, line: int) -> str:
    """Return the comment that says in a rule whose it is; a trace shows it."""
    text = section.called + (f" line {line}" if line else "")
    return f' comment "{text[:_LONGEST]}"'


def elements(
    regime: Regime, chosen: frozenset[str], addresses: Iterable[Prefix], *, policed: bool
) -> Iterator[NftElement]:
    """Return the elements of an endpoint with its ``addresses``, without length.

    ``policed``: it is on this host, and packets to and from it pass the chains. Of another endpoint only those that
    make it a peer are needed.
    """
    if not regime:
        return
    wanted = chosen if policed else chosen & regime.peers
    subjects = ("policed", regime.judge.subjects), ("watched", regime.watched)
    for address in addresses:
        family, text = address.family, address.address
        yield known(address)
        yield from (element(_chosen(digest, family), text) for digest in sorted(wanted))
        for direction in DIRECTIONS if policed else ():
            for name, about in subjects:
                if not chosen.isdisjoint(about[direction]):
                    yield element(f"{name}_{_SHORT[direction]}{family}", text)


def known(address: Prefix) -> NftElement:
    """Return the element of an address of a pool that somebody has: packets from others are dropped silently."""
    return element(f"{_KNOWN}{address.family}", address.address)


def ours(state: State) -> bool:
    """Return whether a set, chain or element belongs to policies."""
    match state:
        case NftElement(table=table, set=name) | NftSet(table=table, name=name):
            return table == TABLE and name.startswith(_SETS)
        case NftChain(table=table, name=name):
            return table == TABLE and name.startswith(("policy_", "staged_"))
    return isinstance(state, BridgeFilter)


_SETS = ("chosen", _KNOWN, "policed_", "watched_", *TALLIES, _PORTS, _RECEIVERS)


def by_peers(state: NftElement) -> bool:
    """Return whether an element may be of another host's endpoint."""
    return ours(state) and state.set.startswith(("chosen", _KNOWN))


def _chosen(digest: str, family: int) -> str:
    return f"chosen{family}_{digest}"


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
