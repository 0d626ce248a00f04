"""Configuration of BIRD 2 and 3, as text: what a speaker announces, accepts, and gives to the kernel.

Beside BIRD's own master tables, the tables ``igp4`` and ``igp6`` have the possible next hops: the networks of
the host's links, and with ``bgp.next-hops=any`` the kernel's other routes outside the pools. A route whose
next hop is not in them stays in BIRD as unreachable, where its reason can be seen, and is never given to the
kernel.

The master tables have blocks (static), prefixes from peers (BGP), and those of the host's own networks that a
peer should get. The speaker passes nothing from one peer to another: a host is no transit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from linkspan.backends.bgp.settings import Speaker
from linkspan.core.addresses import BITS, FAMILIES, Prefix
from linkspan.core.states.bgp import Session
from linkspan.core.states.host import LEARNT_METRIC
from linkspan.core.states.programs import BGP_REFUSED, SECRET

CONTROL, LOG = "bird.ctl", "speaker.log"
LOG_LIMIT = 1 << 20
"""Bytes; BIRD keeps one older log of this size."""

RULES = _LEASES, _OWN, _WIDE, _OUTSIDE, _NOBODY = (
    "not in its leases",
    "own prefix",
    "wider than a block",
    "outside the pools",
    "AS 0 in its path",
)
"""The reasons that a filter may give for a refused route."""

_LONGEST = 1 << 16
"""More AS numbers than a path can have: RFC 8654 section 3 has messages of up to 65,535 bytes."""

GRACEFUL_SHUTDOWN = (65535, 0)
"""RFC 8326: a peer with another route prefers that one."""


class Pool(msgspec.Struct, frozen=True):
    """A pool of the speaker: the length of its blocks, and this host's own address in it ('' for none)."""

    prefix: Prefix
    block: int
    source: str = ""


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs of a speaker, for all networks together.

    ``own`` are this host's prefixes, ``announced`` those of them that peers get. ``next_hops`` has the
    address by which others reach this host, by the family of their packets. If it is of the other family,
    IPv4 uses IPv6 next hops (RFC 8950).
    """

    pools: tuple[Pool, ...]
    own: tuple[Prefix, ...]
    announced: tuple[Prefix, ...]
    next_hops: Mapping[int, str]
    drained: bool = False


def main(speaker: Speaker, serving: Serving, folder: str) -> str:
    """Return the main file, which includes the sessions' files."""
    parts = [
        _general(speaker, folder),
        *(_tables(speaker, serving, family) for family in FAMILIES),
        _announced(serving),
        _template(speaker, serving),
        [f'include "{folder}/peers/*.conf";'],
    ]
    return _text(line for part in parts for line in part)


def session(own: Session, given: Sequence[Prefix], families: Iterable[int], most: int) -> str:
    """Return a session's file; SECRET replaces a password. Accept ``most`` prefixes of each family, 0: all.

    A host of the mesh may announce only prefixes in its leases (``given``). A configured peer may announce
    anything in our pools, and whatever else was asked for.
    """
    lines = [f"protocol bgp {own.protocol} from linkspan {{", f"  neighbor {own.address} as {own.remote_as};"]
    local = f"{own.source} as {own.local_as}" if own.source else f"as {own.local_as}"
    lines.append(f"  local {local}; strict bind {'on' if own.source else 'off'};")
    lines.append(f"  hold time {own.hold};")
    # Without ``direct`` the next hop of IPv6 is the underlay address by which everybody knows the host, and
    # not a link-local one. And a link that flaps loses its routes, but no session.
    hops = own.multihop or (1 if own.mesh else 0)
    lines.append(f"  multihop {hops};" if hops else "  direct;")
    if own.ttl_security:
        lines.append("  ttl security on;")
    if own.password_file:
        lines.append(f"  password {SECRET};")
    if own.remote_as != own.local_as and not own.mesh:
        # Hosts of one AS behind routers of other ASes would take each other's routes for loops (RFC 4271
        # section 9.1.2).
        lines.append("  allow local as 1;")
    for family in families:
        lines.append(f"  ipv{family} {{")
        lines += [
            "    import filter {",
            *(f"      {line}" for line in _import(own, given, family, most)),
            "      reject;",
            "    };",
        ]
        if most:  # prefixes beyond the limit are filtered; the session and the accepted prefixes stay
            lines.append(f"    import limit {most} action block;")
        lines.append(f"    export filter {{ {_export(own, family)}reject; }};")
        lines.append("  };")
    return _text([*lines, "}"])


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _set(words: Iterable[str]) -> str:
    """Return a set of prefixes in BIRD's syntax, '' for an empty set, which BIRD does not have."""
    found = ", ".join(words)
    return f"[ {found} ]" if found else ""


def _general(speaker: Speaker, folder: str) -> Iterator[str]:
    yield "# Written by linkspan, and overwritten after changes by hand."
    yield "log stderr { fatal, bug };"
    levels = "{ info, remote, warning, error, auth, fatal, bug }"
    yield f'log "{folder}/{LOG}" {LOG_LIMIT} "{folder}/{LOG}.old" {levels};'
    yield f"router id {speaker.router_id};"
    yield f"attribute string {BGP_REFUSED};"
    yield "timeformat protocol iso long ms;"
    yield "timeformat route iso long ms;"
    yield f"graceful restart wait {speaker.restart_time};"
    yield "ipv4 table igp4;"
    yield "ipv6 table igp6;"
    yield "protocol device { scan time 10; }"
    # Not on linkspan's own links: a next hop is on the underlay.
    yield 'protocol direct { ipv4 { table igp4; }; ipv6 { table igp6; }; interface -"ls*", -"ipsec0", "*"; }'


def _tables(speaker: Speaker, serving: Serving, family: int) -> Iterator[str]:
    """Return one family's part: its filters, its kernel protocol, and next hops beside the links' networks."""
    pools = [pool for pool in serving.pools if pool.prefix.family == family]
    within = _set(f"{pool.prefix}+" for pool in pools)
    yield f"filter to_kernel{family} {{"
    # A route without a next hop on the link is unreachable: only the next hop's owner could say where it
    # leads.
    yield "  if source != RTS_BGP || dest != RTD_UNICAST then reject;"
    for pool in pools:
        if pool.source:
            yield f"  if net ~ [ {pool.prefix}+ ] then krt_prefsrc = {pool.source};"
    yield "  accept;"
    yield "}"
    foreign = f"source = RTS_INHERIT{f' && !(net ~ {within})' if within else ''}"
    yield f"protocol kernel kernel{family} {{"
    yield f"  metric {LEARNT_METRIC}; merge paths on; persist; graceful restart; scan time 1;"
    if speaker.any_next_hop:
        yield "  learn;"
    import_ = f"where {foreign}" if speaker.any_next_hop else "none"
    yield f"  ipv{family} {{ import {import_}; export filter to_kernel{family}; }};"
    yield "}"
    exported = _set(str(s) for one in speaker.sessions for s in one.exports if s.prefix.family == family)
    if exported or speaker.any_next_hop:
        yield f"protocol pipe igp_pipe{family} {{"
        yield f"  table igp{family}; peer table master{family};"
        yield f"  export {f'where source = RTS_DEVICE && net ~ {exported}' if exported else 'none'};"
        yield f"  import {'where source = RTS_INHERIT' if speaker.any_next_hop else 'none'};"
        yield "}"
    own = _set(f"{p}+" for p in serving.own if p.family == family)
    takes = _set(f"{pool.prefix}{{{pool.block},{BITS[family]}}}" for pool in pools)
    yield f"function own{family}() -> bool {{ return {f'net ~ {own}' if own else 'false'}; }}"
    yield f"function within{family}() -> bool {{ return {f'net ~ {within}' if within else 'false'}; }}"
    # As long as a block or longer: a shorter prefix would send packets for unused addresses to the peer, and
    # back again.
    yield f"function pool{family}() -> bool {{ return {f'net ~ {takes}' if takes else 'false'}; }}"


def _announced(serving: Serving) -> Iterator[str]:
    for family in FAMILIES:
        yield f"protocol static blocks{family} {{"
        yield f"  ipv{family};"
        yield from (f"  route {p} blackhole;" for p in serving.announced if p.family == family)
        yield "}"


def _template(speaker: Speaker, serving: Serving) -> Iterator[str]:
    """Return what all sessions share, and the communities of announced prefixes."""
    yield "function marked() {"
    for community in [*speaker.communities, *([GRACEFUL_SHUTDOWN] if serving.drained else [])]:
        kind = "bgp_community" if len(community) == 2 else "bgp_large_community"
        yield f"  {kind}.add(({', '.join(map(str, community))}));"
    if speaker.med is not None:
        yield f"  bgp_med = {speaker.med};"
    yield "}"
    yield "template bgp linkspan {"
    yield f"  graceful restart on; graceful restart time {speaker.restart_time};"
    yield "  long lived graceful restart off;"
    yield "  connect delay time 1; connect retry time 5; error wait time 1, 30; startup hold time 20;"
    for family, address in serving.next_hops.items():
        yield f"  ipv{family} {{"
        other = (":" in address) != (family == 6)
        if other:
            yield "    extended next hop on;"
        yield f"    next hop self; next hop address {address};"
        yield f"    gateway recursive; igp table igp{family};{' igp table igp6;' if other else ''}"
        yield "    import keep filtered on;"
        yield "  };"
    yield "}"


def _import(own: Session, given: Sequence[Prefix], family: int, most: int) -> Iterator[str]:
    # Never true: a message has room for 16,000 numbers. But with another limit the filter is another one, so
    # BIRD reads all routes again. Otherwise routes that the old limit refused would stay refused.
    yield f"if bgp_path.len > {_LONGEST + most} then reject;"
    yield f"if ({GRACEFUL_SHUTDOWN[0]}, {GRACEFUL_SHUTDOWN[1]}) ~ bgp_community then bgp_local_pref = 0;"
    yield f'if bgp_path ~ [= * 0 * =] then {{ {BGP_REFUSED} = "{_NOBODY}"; reject; }}'  # RFC 7607
    if own.mesh:
        if found := _set(f"{p}+" for p in given if p.family == family):
            yield f"if net ~ {found} then accept;"
        yield f'{BGP_REFUSED} = "{_LEASES}";'
        return
    yield f'if own{family}() then {{ {BGP_REFUSED} = "{_OWN}"; reject; }}'
    beside = _set(str(s) for s in own.imports if s.prefix.family == family)
    yield f"if pool{family}(){f' || net ~ {beside}' if beside else ''} then accept;"
    yield f'{BGP_REFUSED} = "{_OUTSIDE}";'
    yield f'if within{family}() then {BGP_REFUSED} = "{_WIDE}";'


def _export(own: Session, family: int) -> str:
    beside = _set(str(s) for s in own.exports if s.prefix.family == family)
    more = f"if source = RTS_DEVICE && net ~ {beside} then accept; " if beside else ""
    return f"if source = RTS_STATIC then {{ marked(); accept; }} {more}"
