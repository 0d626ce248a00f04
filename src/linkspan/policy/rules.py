"""Rules: policies as sets and chains of nftables. The package's docstring says how they look, and why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from linkspan.core.addresses import Prefix
from linkspan.core.ruleset import INET, TABLE, element, pool_text
from linkspan.core.states.host import NftChain, NftElement, NftSet, State
from linkspan.policy.judge import Clause, Judge, Match, Section
from linkspan.policy.model import DIRECTIONS, Direction, Ports

_IP, _TYPE = {4: "ip", 6: "ip6"}, {4: "ipv4_addr", 6: "ipv6_addr"}
_ICMP = {4: "icmp", 6: "ipv6-icmp"}
_SHORT: dict[Direction, str] = {"ingress": "in", "egress": "out"}
_LINK: dict[Direction, str] = {"ingress": "oifname", "egress": "iifname"}
_OWN: dict[Direction, str] = {"ingress": "daddr", "egress": "saddr"}
_OTHER: dict[Direction, str] = {"ingress": "saddr", "egress": "daddr"}
_OPPOSITE: dict[Direction, Direction] = {"ingress": "egress", "egress": "ingress"}
_PRIORITY: dict[Direction, int] = {"egress": 5, "ingress": 6}
"""After ``forward``, whose order does not matter: a drop is final, and an accept ends one base chain."""
_REFUSED = "reject with icmpx admin-prohibited"
_KNOWN = "policy_known"
_STRAY = "ct state new tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset"
"""It begins no connection, and belongs to none: connection tracking would make one of it (nf_conntrack_tcp_loose).

A late packet of a known connection is no such packet but an invalid one: a reset would end the connection.
"""
_INVALID = "ct state invalid drop"
_LONGEST = 128
"""Bytes of a comment (NFTNL_UDATA_COMMENT_MAXLEN in libnftnl)."""


def states(judge: Judge, families: Iterable[int]) -> Iterator[State]:
    """Return the sets and chains of all policies, for the families of the networks' pools; none without policies."""
    wanted = sorted(set(families))
    if not judge or not wanted:
        return
    for family in wanted:
        for name in (_KNOWN, "policed_in", "policed_out"):
            yield NftSet(INET, TABLE, f"{name}{family}", _TYPE[family])
        for digest in judge.selectors:
            yield NftSet(INET, TABLE, _chosen(digest, family), _TYPE[family])
    for direction in DIRECTIONS:
        if not judge.sections[direction]:
            continue
        short, link, own = _SHORT[direction], _LINK[direction], _OWN[direction]
        back, other = _LINK[_OPPOSITE[direction]], _OTHER[direction]
        rules = ["ct state established,related accept"]
        for family in wanted:
            ip, policed = _IP[family], f"@policed_{short}{family}"
            rules.append(f'{link} "lsr*" {ip} {own} {policed} jump policy_{short}{family}')
            # Whoever speaks first after a cut: else an answer would begin a connection that nobody judges.
            rules.append(f'{back} "lsr*" {ip} {other} {policed} {_STRAY}')
            yield from _of_family(judge.sections[direction], direction, family)
        hook = f"type filter hook forward priority filter + {_PRIORITY[direction]}; policy accept;"
        yield NftChain(INET, TABLE, f"policy_{short}", hook, tuple(rules))


def _of_family(sections: tuple[Section, ...], direction: Direction, family: int) -> Iterator[State]:
    ip, own, other, short = _IP[family], _OWN[direction], _OTHER[direction], _SHORT[direction]
    rules = [_INVALID, _STRAY, f"{ip} {other} @pools{family} {ip} {other} != @{_KNOWN}{family} drop"]
    for section in sections:
        if section.clauses:
            name = f"policy_{short}{family}_{_digest(section.policy)}"
            chosen = f"{ip} {own} @{_chosen(section.subject, family)}"
            rules.append(f'{chosen} jump {name} comment "policy {section.policy}"')
            lines = [rule for clause in section.clauses for rule in _clause(section, clause, direction, family)]
            yield NftChain(INET, TABLE, name, "", tuple(lines))
    rules += [
        f"{ip} {own} @{_chosen(section.subject, family)} {_REFUSED}{comment(section, section.line)}"
        for section in sections
        if section.isolates
    ]
    yield NftChain(INET, TABLE, f"policy_{short}{family}", "", tuple(rules))


def _clause(section: Section, clause: Clause, direction: Direction, family: int) -> Iterator[str]:
    verdict = "accept" if clause.action == "allow" else _REFUSED
    for peer in _peers(clause.peers, _OTHER[direction], family) if clause.peers else ("",):
        for port in _ports(clause.ports, family) if clause.ports else ("",):
            yield f"{peer}{port}{verdict}{comment(section, clause.line or section.line)}"


def _peers(peers: Iterable[Match], other: str, family: int) -> Iterator[str]:
    at = f"{_IP[family]} {other}"
    for peer in peers:
        if peer.outside:
            yield f"{at} != @pools{family} "
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
        if not known[0][0]:
            yield f"meta l4proto {_ICMP[family] if protocol == 'icmp' else protocol} "
            continue
        texts = [str(first) if first == last else f"{first}-{last}" for first, last in known]
        yield f"{protocol} dport {texts[0] if len(texts) == 1 else '{ ' + ', '.join(texts) + ' }'} "


def comment(section: Section, line: int) -> str:
    """Return the comment that says in a rule whose it is; a trace shows it."""
    if section.network:
        text = f"default of network {section.network}"
    else:
        text = f"policy {section.policy}" + (f" line {line}" if line else "")
    return f' comment "{text[:_LONGEST]}"'


def elements(
    judge: Judge, chosen: frozenset[str], addresses: Iterable[Prefix], *, policed: bool
) -> Iterator[NftElement]:
    """Return the elements of an endpoint with its ``addresses``, without length.

    ``policed``: it is on this host, and packets to and from it pass the chains. Of another endpoint only those that
    make it a peer are needed.
    """
    if not judge:
        return
    wanted = chosen if policed else chosen & judge.peers
    for address in addresses:
        family, text = address.family, address.address
        yield known(address)
        yield from (element(_chosen(digest, family), text) for digest in sorted(wanted))
        for direction in DIRECTIONS if policed else ():
            if not chosen.isdisjoint(judge.subjects[direction]):
                yield element(f"policed_{_SHORT[direction]}{family}", text)


def known(address: Prefix) -> NftElement:
    """Return the element of an address of a pool that somebody has: packets from others are dropped silently."""
    return element(f"{_KNOWN}{address.family}", address.address)


def ours(state: State) -> bool:
    """Return whether a set, chain or element belongs to policies."""
    match state:
        case NftElement(family=family, table=table, set=name) | NftSet(family=family, table=table, name=name):
            return (family, table) == (INET, TABLE) and name.startswith(("chosen", _KNOWN, "policed_"))
        case NftChain(family=family, table=table, name=name):
            return (family, table) == (INET, TABLE) and name.startswith("policy_")
    return False


def by_peers(state: NftElement) -> bool:
    """Return whether an element may be of another host's endpoint."""
    return ours(state) and state.set.startswith(("chosen", _KNOWN))


def _chosen(digest: str, family: int) -> str:
    return f"chosen{family}_{digest}"


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
