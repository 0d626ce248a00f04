"""BIRD 2 as a router or route reflector of the lab: its configuration, and its start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from linkspan.lab.record import Lab, Router
from linkspan.lab.topology import CONTAINERS, HOLD, LIMIT, bare, families, rack, router_id

PACKAGE, CONFIG = "bird2", "bird.conf"


def config(lab: Lab, router: Router) -> str:
    """Return bird.conf."""
    return "\n".join(_reflector(lab, router) if router.reflector else _router(lab, router)) + "\n"


def _head(router: Router, outer: Sequence[int], what: str) -> Iterator[str]:
    yield f"# {router.name}: {what}, AS {router.asn}"
    yield f"router id {router_id(router)};"
    yield "log stderr all;"
    yield ""
    yield "# Container networks are made in these, and other prefixes from hosts are not accepted."
    for family in outer:
        yield f"define CONTAINERS{family} = [ {CONTAINERS[family]}+ ];"
    yield ""
    yield "protocol device {}"


def _router(lab: Lab, router: Router) -> Iterator[str]:
    outer = families(lab)
    yield from _head(router, outer, f"top of rack {router.segment}")
    yield "protocol direct {"
    yield f"  {' '.join(f'ipv{family};' for family in outer)}"
    yield '  interface "eth0";  # the rack\'s own prefix'
    yield "}"
    for family in outer:
        yield f"protocol kernel kernel{family} {{"
        yield f"  ipv{family} {{ import none; export where source = RTS_BGP; }};"
        yield "  merge paths on;  # all equally good paths, not one"
        yield "}"
    yield ""
    yield "# GRACEFUL_SHUTDOWN (RFC 8326): any other path is better. FRR does that by itself."
    yield "function leaving() -> bool { if (65535, 0) ~ bgp_community then bgp_local_pref = 0; return true; }"
    yield ""
    yield "# The rack's hosts: they connect, each from an AS of its own."
    yield "protocol bgp hosts {"
    yield f"  local as {router.asn};"
    yield f"  neighbor range {rack(router, outer[0])} external;"
    yield '  dynamic name "host";'
    yield f"  hold time {HOLD}; error wait time 1, 5;"
    for family in outer:
        where = f"where net ~ CONTAINERS{family}"
        yield f"  ipv{family} {{"
        yield f"    import {where} && leaving(); import limit {LIMIT} action block;"
        yield f"    export {where};"
        yield "  };"
    yield "}"
    if others := [other for other in lab.routers if other is not router]:
        yield ""
        yield "# The other racks' routers: they learn the containers' and this rack's prefixes."
        yield "template bgp rack {"
        yield f"  local {bare(router.core[0])} as {router.asn};"
        yield f"  hold time {HOLD};"
        yield "  connect delay time 1; connect retry time 5; error wait time 1, 5;"
        for family in outer:
            yield f"  ipv{family} {{ import where leaving(); export where source ~ [ RTS_BGP, RTS_DEVICE ]; }};"
        yield "}"
        for other in others:
            yield f"protocol bgp {other.name} from rack {{ neighbor {bare(other.core[0])} as {other.asn}; }}"


def _reflector(lab: Lab, router: Router) -> Iterator[str]:
    outer = families(lab)
    yield from _head(router, outer, "route reflector")
    yield ""
    yield "# The hosts are its clients: routes of one go to all others, with an unchanged next hop."
    yield "protocol bgp hosts {"
    yield f"  local as {router.asn};"
    yield f"  neighbor range {rack(router, outer[0])} internal;"
    yield '  dynamic name "host";'
    yield f"  hold time {HOLD}; error wait time 1, 5;"
    yield "  rr client;"
    for family in outer:
        where = f"where net ~ CONTAINERS{family}"
        yield f"  ipv{family} {{ import {where}; import limit {LIMIT} action block; export all; }};"
    yield "}"


def start(folder: Path) -> list[tuple[str, list[str], str]]:
    """Return the daemons in the order of their start: name, command, and the socket that shows that it serves."""
    words = ["bird", "-f", "-c", str(folder / "bird.conf"), "-s", str(folder / "bird.ctl")]
    return [("bird", words, "bird.ctl")]


def tools(folder: Path) -> dict[str, list[str]]:
    """Return the programs to control it."""
    return {"birdc": ["birdc", "-s", str(folder / "bird.ctl")]}
