"""Rules: policies as sets and chains of nftables. The package's docstring says how they look, and why."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from linkspan.core import icmp
from linkspan.core.addresses import Prefix
from linkspan.core.model import Port
from linkspan.core.ports import families_of, key_of
from linkspan.core.ruleset import BRIDGE, INET, TABLE, element, pool_text
from linkspan.core.states.host import BridgeFilter, NftChain, NftElement, NftSet, State
from linkspan.policy.judge import LINK_LOCAL, Clause, Judge, Match, Section
from linkspan.policy.model import DIRECTIONS, Direction, Ports
from linkspan.policy.regime import Regime

_IP, _TYPE = {4: "ip", 6: "ip6"}, {4: "ipv4_addr", 6: "ipv6_addr"}
_NFPROTO = {4: "ipv4", 6: "ipv6"}
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
_PORT_TYPE = "inet_proto . inet_service"
_PORT_KEYS = {
    "": ("meta l4proto . th dport", "meta l4proto . th sport"),
    "_at": ("{ip} daddr . meta l4proto . th dport", "{ip} saddr . meta l4proto . th sport"),
}
"""Keys of ports of the host, at all its addresses and at one: of packets to it, and of its answers."""
_REMEMBERED = 7 * 86400
"""Seconds for which such a count is kept after its last packet."""
_WITH_PORTS = "{ tcp, udp, sctp }"
_COUNTED = {4: "{ icmp, tcp, udp, sctp }", 6: "{ tcp, udp, ipv6-icmp, sctp }"}
"""The protocols that are counted with a port or a request, in nft's order."""
_KNOWN = "policy_known"
_SETS_OF_KNOWN = {family: f"{_KNOWN}{family}" for family in _TYPE}
_STRAY = "ct state new tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset"
"""It begins no connection, and belongs to none: connection tracking would make one of it (nf_conntrack_tcp_loose).

A late packet of a known connection is no such packet but an invalid one: a reset would end the connection.
"""
_INVALID = "ct state invalid drop"
_WAYS = 4096
"""Combinations of policies whose chains are remembered."""
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

    def of(self, section: Section, direction: Direction, family: int) -> str:
        """Return the name of the chain with a section's rules."""
        return f"{self.chain(direction, family)}_{_digest(section.called)}"

    def otherwise(self, section: Section, direction: Direction, family: int) -> str:
        """Return the name of the chain that refuses what no rule of a section allows."""
        return f"{self.of(section, direction, family)}_no"

    def subjects(self, direction: Direction, family: int) -> str:
        """Return the name of the set of the endpoints that the chains of a direction are about."""
        return f"{self.sets}_{_SHORT[direction]}{family}"

    def ways(self, direction: Direction, family: int, after: str = "") -> str:
        """Return the name of the map that leads each of them to the chain of its policies: those ``after`` a tier."""
        return f"{self.sets}_by_{_SHORT[direction]}{family}{f'_{after}' if after else ''}"

    def ports(self, family: int, at: str = "") -> str:
        """Return the name of the set of the ports of containers on the host's network; ``at`` as in ``key_of``."""
        return f"{self.sets}_port{at}{family}"

    def port_ways(self, family: int, at: str = "", after: str = "") -> str:
        """Return the name of the map that leads from each of them to the chain of its policies, as in ``ways``."""
        return f"{self.sets}_by_port{at}{family}{f'_{after}' if after else ''}"

    def after(self, tier: str, direction: Direction, family: int) -> str:
        """Return the name of the chain to which rules lead that pass on what a tier does not decide."""
        return f"{self.chain(direction, family)}_after_{tier}"

    def passing(self, direction: Direction) -> list[str]:
        """Return the tiers with such rules."""
        return list(dict.fromkeys(section.tier for section in self.judge.sections[direction] if section.passes))

    def about(self, regime: Regime) -> Mapping[Direction, frozenset[str]]:
        """Return by direction the digests of the selectors whose endpoints it is about."""
        return self.judge.subjects if self.enforces else regime.watched

    @property
    def lost(self) -> tuple[str, ...]:
        """Return what becomes of a packet whose endpoint is under policy and has lost its way to the chains."""
        return ("drop",) if self.enforces else ()

    def refuses(self, family: int) -> str:
        """Return the verdict of a rule that refuses."""
        return f"counter goto {'policy_refused' if self.enforces else f'staged_refused{family}'}"


def _readings(regime: Regime) -> list[_Reading]:
    """Return the readings that have policies; after ``forward``, whose order does not matter: a drop is final.

    Staged policies come last: what the others refuse is not theirs.
    """
    every = _Reading(regime.judge, "policy", "policed", 5), _Reading(regime.trial, "staged", "watched", 7)
    return [reading for reading in every if reading.judge]


class Part(msgspec.Struct, frozen=True):
    """A policy's part of the rules, in one reading and direction: all that its own sets and chains follow from."""

    reading: str
    direction: Direction
    section: Section

    @property
    def name(self) -> tuple[str, ...]:
        """Return a name that no other part of a regime has."""
        return self.reading, self.direction, self.section.called

    @property
    def way(self) -> tuple[object, ...]:
        """Return what the chains of endpoints that it is about follow from."""
        one = self.section
        return one.subject, one.tier, one.order, bool(one.clauses), one.isolates, one.passes


@functools.lru_cache(2)
def parts(regime: Regime) -> Mapping[tuple[str, ...], Part]:
    """Return the parts of a regime, by name; those of the last two are kept, which changes compare."""
    every = (
        Part(reading.name, direction, section)
        for reading in _readings(regime)
        for direction in DIRECTIONS
        for section in reading.judge.sections[direction]
    )
    return {part.name: part for part in every}


class Difference(msgspec.Struct, frozen=True):
    """The effect of a change of policies on rules and elements; everything else stays.

    ``put`` are new and changed parts, ``gone`` the names of former ones. ``concerned`` are the digests of selectors of
    either regime: what they select on this host may need other elements. ``gained`` and ``lost`` are those of peers,
    the only ones that matter for other hosts' endpoints.
    """

    put: tuple[Part, ...]
    gone: tuple[tuple[str, ...], ...]
    concerned: frozenset[str]
    gained: frozenset[str]
    lost: frozenset[str]


def difference(before: Regime, after: Regime) -> Difference:
    """Return what differs between two regimes."""
    if before is after:
        return Difference((), (), frozenset(), frozenset(), frozenset())
    old, new = parts(before), parts(after)
    put = tuple(part for name, part in new.items() if old.get(name) != part)
    gone = tuple(name for name in old if name not in new)
    gained, lost = after.peers - before.peers, before.peers - after.peers
    found = set(gained | lost)
    for direction in DIRECTIONS:
        found |= before.watched[direction] ^ after.watched[direction]
    for name in (*gone, *(part.name for part in put)):
        both = [part for part in (old.get(name), new.get(name)) if part is not None]
        if len(both) == 1 or both[0].way != both[1].way:  # otherwise only the rules in its own chains differ
            found |= {part.section.subject for part in both}
    return Difference(put, gone, frozenset(found), gained, lost)


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
    readings = _readings(regime)
    for family in wanted:
        yield NftSet(INET, TABLE, _SETS_OF_KNOWN[family], _TYPE[family])
        for reading, direction in itertools.product(readings, DIRECTIONS):
            yield NftSet(INET, TABLE, reading.subjects(direction, family), _TYPE[family])
            for after in ("", *reading.passing(direction)):
                yield NftSet(INET, TABLE, reading.ways(direction, family, after), _TYPE[family], "verdict")
    for reading in readings:
        yield from _counted(wanted, logs=logs) if not reading.enforces else (_refused(logs=logs),)
        for direction in DIRECTIONS:
            if reading.judge.sections[direction]:
                yield from _of_direction(reading, direction, wanted, ports=ports)
        if ports and reading.judge.sections["ingress"]:
            yield from _of_ports(reading, wanted)


def states(regime: Regime, part: Part, families: Iterable[int]) -> Iterator[State]:
    """Return the chains of a part of a regime, and the sets of its peers."""
    (reading,) = (one for one in _readings(regime) if one.name == part.reading)
    section, direction = part.section, part.direction
    for family in sorted(set(families)):
        for digest in dict.fromkeys(peer.digest for clause in section.clauses for peer in clause.peers if peer.digest):
            yield NftSet(INET, TABLE, _chosen(digest, family), _TYPE[family])
        if section.clauses:
            lines = (_clause(reading, section, clause, direction, family) for clause in section.clauses)
            name = reading.of(section, direction, family)
            yield NftChain(INET, TABLE, name, "", tuple(itertools.chain.from_iterable(lines)))
        if section.isolates:
            line = f"{reading.refuses(family)}{comment(section, section.line)}"
            yield NftChain(INET, TABLE, reading.otherwise(section, direction, family), "", (line,))


def sets_of_peers(regime: Regime, families: Collection[int]) -> frozenset[str]:
    """Return the names of the sets in which other hosts' endpoints may be."""
    chosen = (_chosen(digest, family) for digest, family in itertools.product(regime.peers, families))
    return frozenset([*(_SETS_OF_KNOWN[family] for family in families), *chosen])


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


def _of_direction(reading: _Reading, direction: Direction, families: list[int], *, ports: bool) -> Iterator[State]:
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


def _of_family(reading: _Reading, direction: Direction, family: int, *, ports: bool) -> Iterator[State]:
    ip, own = _IP[family], _OWN[direction]
    silent = [f"{match} {ip} {_OTHER[direction]} != @{_KNOWN}{family}" for match in _near(direction, family)]
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


def _silenced(reading: _Reading, silent: Iterable[str]) -> list[str]:
    """Return the rules before all policies: for packets of no connection, and for those of nobody that is known."""
    rules = [f"{match} {'drop' if reading.enforces else 'accept'}" for match in silent]
    return [_INVALID, _STRAY, *rules] if reading.enforces else rules


def _of_ports(reading: _Reading, families: list[int]) -> Iterator[State]:
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
        silent = [f"{ip} saddr @pools{family} {ip} saddr != @{_KNOWN}{family}"]
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


def _port_ways(reading: _Reading, family: int, after: str = "") -> Iterator[str]:
    """Yield the rules that lead from a packet's port to the chain of its policies: the port at one address first."""
    for at, (target, _) in reversed(_PORT_KEYS.items()):
        yield f"{target.format(ip=_IP[family])} vmap @{reading.port_ways(family, at, after)}"


def _each(
    reading: _Reading, direction: Direction, family: int, tiers: Iterable[Iterable[Section]]
) -> dict[str, NftChain]:
    """Return the chains for the endpoints that these sections are about, by the tier after which they come.

    The first one is after no tier (""). A jump for each policy is followed by what refuses the rest. A tier that passes
    something on ends such a chain, because a packet must not come back to its policies: the next one ends with accept.
    A chain's name follows from its rules, so endpoints whose policies change get another one, in one transaction.
    """
    found: dict[str, list[str]] = {}
    after, rules = "", found.setdefault("", [])
    for sections in map(list, tiers):
        rules += [
            f'jump {reading.of(section, direction, family)} comment "{section.called}"'
            for section in sections
            if section.clauses
        ]
        first = next((section for section in sections if section.isolates), None)
        if first is not None:
            rules.append(f"goto {reading.otherwise(first, direction, family)}")
        if any(section.passes for section in sections):
            after = sections[0].tier
            if first is None:
                rules.append(f"goto {reading.after(after, direction, family)}")
            rules = found.setdefault(after, [])
        elif first is not None:
            break  # nothing comes to the next tier
    else:
        if after:
            rules.append("accept")
    head = f"{reading.chain(direction, family)}_by_"
    return {
        tier: NftChain(INET, TABLE, f"{head}{_digest(' '.join(lines))}", "", tuple(lines))
        for tier, lines in found.items()
    }


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
    reading: _Reading, section: Section, clause: Clause, direction: Direction, family: int
) -> Iterator[str]:
    passed = f"goto {reading.after(section.tier, direction, family)}"
    verdict = {"allow": "accept", "deny": reading.refuses(family), "pass": passed}[clause.action]
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


def of_endpoint(regime: Regime, chosen: frozenset[str], addresses: Iterable[Prefix], *, policed: bool) -> list[State]:
    """Return the elements of an endpoint of this host with its ``addresses``, without length.

    ``policed``: packets to and from it pass the chains. Then the chains of all policies about it are among the states;
    other endpoints with the same policies have the same ones.
    """
    if not regime:
        return []
    found = [one for address in addresses for one in (known(address), *of_peer(regime, chosen, address))]
    return [*found, *(_own(regime, chosen, addresses) if policed else ())]


def _own(regime: Regime, chosen: frozenset[str], addresses: Iterable[Prefix]) -> Iterator[State]:
    """Yield what leads an endpoint's packets to the chains of its policies."""
    for reading, direction in itertools.product(_readings(regime), DIRECTIONS):
        if chosen.isdisjoint(reading.about(regime)[direction]):
            continue
        for family in sorted({address.family for address in addresses}):
            chains = _chains(regime, reading, direction, family, chosen)
            yield from chains.values()
            for text in (address.address for address in addresses if address.family == family):
                yield element(reading.subjects(direction, family), text)
                for after, chain in chains.items():
                    yield element(reading.ways(direction, family, after), text, data=(f"goto {chain.name}",))


def _chains(
    regime: Regime, reading: _Reading, direction: Direction, family: int, chosen: frozenset[str]
) -> dict[str, NftChain]:
    """Return the chains of what these selectors select, by the tier after which each comes."""
    way = reading.name, direction, family, chosen
    if way not in regime.ways:
        if len(regime.ways) >= _WAYS:
            regime.ways.clear()
        regime.ways[way] = _each(reading, direction, family, reading.judge.tiers_of(direction, chosen))
    return regime.ways[way]


def of_ports(
    regime: Regime, chosen: frozenset[str], ports: Iterable[Port], families: Collection[int]
) -> Iterator[State]:
    """Yield what leads packets to ports of a container on the host's own network to the chains of its policies."""
    every = [(port, family) for port in ports for family in families_of(port) if family in families]
    for reading in _readings(regime):
        if chosen.isdisjoint(reading.about(regime)["ingress"]):
            continue
        for port, family in every:
            at, key = key_of(port)
            chains = _chains(regime, reading, "ingress", family, chosen)
            yield from chains.values()
            yield element(reading.ports(family, at), *key)
            for after, chain in chains.items():
                yield element(reading.port_ways(family, at, after), *key, data=(f"goto {chain.name}",))


def of_peer(regime: Regime, chosen: frozenset[str], address: Prefix) -> Iterator[NftElement]:
    """Return the elements by which an address is a peer: of the sets of selectors that select its endpoint."""
    parts = (address.address,)
    yield from (peer(digest, address.family, parts) for digest in sorted(chosen & regime.peers))


def peer(digest: str, family: int, parts: tuple[str, ...]) -> NftElement:
    """Return the element of an address that a peer's selector selects; ``parts`` are those of its ``known`` one.

    All its elements share them: there are tens of thousands.
    """
    return NftElement(INET, TABLE, _chosen(digest, family), parts)


def known(address: Prefix) -> NftElement:
    """Return the element of an address of a pool that somebody has: packets from others are dropped silently."""
    return element(_SETS_OF_KNOWN[address.family], address.address)


def ours(state: State) -> bool:
    """Return whether a set, chain or element belongs to policies."""
    match state:
        case NftElement(table=table, set=name) | NftSet(table=table, name=name):
            return table == TABLE and name.startswith(_SETS)
        case NftChain(table=table, name=name):
            return table == TABLE and name.startswith(("policy_", "staged_"))
    return isinstance(state, BridgeFilter)


_SETS = ("chosen", _KNOWN, "policed_", "watched_", *TALLIES, _PORTS, _RECEIVERS)


@functools.lru_cache(4096)
def _chosen(digest: str, family: int) -> str:
    return f"chosen{family}_{digest}"


@functools.lru_cache(4096)
def _digest(name: str) -> str:
    """Return 128 bits of a chain's name: two contents with one name would be a conflict on every host."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
