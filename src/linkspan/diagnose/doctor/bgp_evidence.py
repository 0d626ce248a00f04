"""Evidence about a BGP session that is down, gathered on this host for ``bgp_reasons.explain``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from linkspan.core.addresses import prefix
from linkspan.core.errors import LinkspanError
from linkspan.core.states.bgp import Session
from linkspan.core.states.host import HOST
from linkspan.core.states.programs import BGP_PORT
from linkspan.diagnose.doctor.bgp_reasons import Evidence
from linkspan.diagnose.trace.hops import show
from linkspan.diagnose.trace.kernel_view import KernelView, Lookup
from linkspan.diagnose.trace.packet import Packet
from linkspan.kernel.probe import bird_control, port_owners
from linkspan.kernel.probe.bird_control import Protocol, Said
from linkspan.kernel.probe.tcp_connect import approach, pings

RECENT = 300.0
"""Seconds of the log that count: BIRD and FRR retry a connection after 120 s at most."""
TAIL = 1 << 16
"""Bytes of the log to read."""
_BUSY = ("OpenSent", "OpenConfirm")
"""States with a connection: another one would only disturb it."""


def recent(log: Path) -> tuple[Said, ...]:
    """Return recent lines of the speaker's log; none if it has no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - TAIL, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    begin = time.time() - RECENT
    return tuple(line for line in bird_control.said(text) if line.at >= begin)


def gather(
    session: Session,
    seen: Protocol | None,
    asked: KernelView,
    said: tuple[Said, ...] = (),
    refusals: Mapping[str, int] | None = None,
) -> Evidence:
    """Examine from this host, in any thread in its namespace; takes up to 5 s, and leaves sessions undisturbed.

    ``refusals`` are the signatures that the kernel refused recently.
    """
    if seen is None or seen.established:
        return Evidence(said=said)
    target, source = prefix(session.address).packed, prefix(session.source).packed if session.source else b""
    has_source = not source or source in asked.addresses(HOST)
    if not has_source:
        return Evidence(said=said, has_source=False)
    if seen.bgp_state == "Down":
        return Evidence(said=said, has_source=True, holder=_holder(session.source))
    lookup = asked.route(HOST, Packet(source, target))
    if lookup.error:
        return Evidence(said=said, has_source=True, route="the kernel has none")
    found = Evidence(
        said=said,
        refusals=refusals or {},
        has_source=True,
        device=lookup.device,
        gateway=show(lookup.gateway) if lookup.gateway else "",
    )
    if seen.bgp_state in _BUSY:
        return found
    tcp = approach(
        session.source, session.address, BGP_PORT, 255 if session.ttl_security else session.multihop or 1
    )
    answers = tcp in ("open", "closed", "refused")
    return msgspec.structs.replace(
        found,
        tcp=tcp,
        pings=answers or pings(session.address),
        neighbour=answers or _neighbour(asked, lookup, source, target),
    )


def _neighbour(asked: KernelView, lookup: Lookup, source: bytes, target: bytes) -> bool:
    next_hop = lookup.gateway or target
    return asked.answering(HOST, lookup.device, source or lookup.source, next_hop) is not None


def _holder(source: str) -> str:
    try:
        return port_owners.holder("tcp", source, BGP_PORT)
    except LinkspanError:
        return ""
