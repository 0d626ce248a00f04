"""Explanation of where a lesson's packet goes: linkspan's trace through what the reader has built, over all hosts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import msgspec

from linkspan.core.states.host import HOST
from linkspan.diagnose.trace import between_hosts
from linkspan.diagnose.trace.hops import Hop, show
from linkspan.diagnose.trace.parts import Entry, Part
from linkspan.diagnose.trace.trace import BROKEN, Trace, chosen, place, port, run, trace
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.learn import reader_network
from linkspan.learn.reader_kernel import ReaderKernel
from linkspan.learn.reader_network import FIRST, ReaderHost
from linkspan.learn.reader_walk import ReaderWalk


def walked(packet: Sequence[str], hosts: Sequence[str] = ()) -> Trace:
    """Trace a packet through this process's namespaces, as `linkspan trace` does; the reader's links are endpoints.

    Must run inside the sandbox, in a process with one thread. ``packet`` has a source (a namespace's name or an
    address), a destination, and perhaps a port (80/tcp); ``hosts`` are the namespaces that are hosts, too. Raises
    LinkspanError if an end is not there.
    """
    source, target, *ports = packet
    for end in (source, target):
        if why := reader_network.lacking(end):
            return Trace(False, 0, (), broken_at=f"{FIRST}/{end}", reason=why, verdict=BROKEN)
    built = {one.name: one for one in reader_network.hosts(hosts)}
    with contextlib.closing(Namespaces()) as namespaces:
        known = built[FIRST].known
        with contextlib.closing(_kernel(namespaces, built[FIRST])) as asked:
            first, last = place(source, known, asked), place(target, known, asked)
            sent = chosen(asked, known, first, last, port(*ports or ("",)))
        asking = trace(known, first, last, sent)
        found = run(asking, lambda host, entry: _part(namespaces, built[host or FIRST], entry))
        return _with_holders(found, built.values(), sent.target)


def _part(namespaces: Namespaces, host: ReaderHost, entry: Entry) -> Part:
    """Walk through one host, in its own namespace."""
    if host.netns != HOST:
        namespaces.register(host.netns, host.path)
    with (
        namespaces.entered(host.netns),
        contextlib.closing(Namespaces()) as own,
        contextlib.closing(_kernel(own, host)) as asked,
    ):
        return between_hosts.walked(ReaderWalk(asked, host.known, entry.translation, host.xfrm, host.switches), entry)


def _kernel(namespaces: Namespaces, host: ReaderHost) -> ReaderKernel:
    """Return the answers of a host's kernel; the calling thread is in that host."""
    for one in host.known.endpoints:
        namespaces.register(one.netns, one.netns_path)
    return ReaderKernel(namespaces, host.wires, host.speaker())


def arrives(found: Trace) -> bool:
    """Return whether the packet arrives, and at a program that listens if it has a port."""
    return found.reachable and found.listens is not False


def finding(found: Trace) -> str:
    """Return in one sentence what is wrong by a trace, '' if nothing is."""
    if not found.reachable:
        return f"{stop(found)}: {found.reason}" if found.broken_at else found.reason
    if not arrives(found):
        return found.hops[-1].detail
    if (narrower := narrow(found)) is None:
        return ""
    sender, at = narrower
    return (
        f"{sender.namespace} sends up to {sender.mtu} bytes, and only {found.path_mtu} fit through {at.device} "
        f"in {at.namespace}"
    )


def stop(found: Trace) -> str:
    """Return where a packet is stopped, as NAMESPACE/DEVICE: here every namespace has a name of its own."""
    return (found.broken_at or "").partition("/")[2]


def narrow(found: Trace) -> tuple[Hop, Hop] | None:
    """Return the sending hop and the first one through which packets of its size do not fit; None if all do."""
    if not found.hops:
        return None
    first = found.hops[0]
    at = next((hop for hop in (*found.hops, *found.reply_hops) if hop.mtu < first.mtu), None)
    return (first, at) if at else None


def _with_holders(found: Trace, hosts: Iterable[ReaderHost], target: bytes) -> Trace:
    """Return a trace that says so if several have the destination: whose answer comes first gets the packets."""
    endpoints = (one for host in hosts for one in host.known.endpoints)
    holders = sorted({one.name for one in endpoints if any(p.packed == target for p in one.prefixes)})
    if found.reachable or len(holders) < 2:
        return found
    return msgspec.structs.replace(found, reason=f"{found.reason}; {show(target)} is in {' and in '.join(holders)}")
