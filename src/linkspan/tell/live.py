"""``trace --live``: one real packet, and at which devices of the walk it was seen.

A packet socket listens at each device, on this host and, where their agents are asked to, on the others. The packet
and the answer to it are known again by a mark (``probe``), whatever is around them or translates them.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from linkspan.errors import Invalid, LinkspanError
from linkspan.kernel.namespaces import Namespaces
from linkspan.tell.hops import OUTSIDE, Hop, Map
from linkspan.tell.probe import MARK, Probe, way
from linkspan.tell.questions import ESP, WIREGUARD, Packet
from linkspan.tell.trace import BROKEN, Place, Trace

PATIENCE = 1.5
"""Seconds to wait for the answer: a neighbour that must be asked for first is asked again after one."""
AGAIN = 0.2
"""Seconds after which the packet is sent again while another host may not have begun to listen."""
LISTENING = 2.0
"""Seconds that a host listens for another one."""
_ALL = 0x0003  # ETH_P_ALL, linux/if_ether.h

Device = tuple[str, str]
"""A namespace's name and a device in it."""


class Listen(msgspec.Struct, frozen=True, tag="listen"):
    """Asks at which devices the packet with this mark is seen, and at which the answer to it."""

    mark: bytes
    there: tuple[Device, ...] = ()
    back: tuple[Device, ...] = ()
    protocol: str = "icmp"


class Heard(msgspec.Struct, frozen=True, tag="heard"):
    """Where the packet and its answer were seen; ``ears`` is where somebody listened."""

    there: tuple[Device, ...] = ()
    back: tuple[Device, ...] = ()
    ears: tuple[Device, ...] = ()


def listening(found: Trace, host: str, mark: bytes = b"", protocol: str = "icmp") -> Listen:
    """Return what a host is to listen for."""
    ways = ([_device(h) for h in hops if h.device and h.host == host] for hops in (found.hops, found.reply_hops))
    there, back = (tuple(dict.fromkeys(devices)) for devices in ways)
    return Listen(mark, there, back, protocol)


def send(
    namespaces: Namespaces,
    known: Map,
    source: Place,
    packet: Packet,
    found: Trace,
    mark: bytes,
    going: Callable[[], bool] = lambda: False,
) -> Heard:
    """Send the packet (again, as long as others are ``going`` to listen), and tell where it is seen on this host.

    Raises Invalid where the source is outside this host, or the protocol is one that no answer is known of.
    """
    if source.netns == OUTSIDE or source.host:
        raise Invalid(f"{source.name} is not on this host", "a live trace starts at a container or the host")
    if packet.protocol not in ("icmp", "tcp"):
        raise Invalid(f"a live trace cannot send {packet.protocol}", "leave --port out, or give a tcp port")
    with contextlib.ExitStack() as stack:
        ears = _ears(stack, namespaces, known, listening(found, known.host))
        probe = Probe(packet, mark, lambda: namespaces.entered(source.netns))
        stack.callback(probe.close)
        probe.send()
        end = _device(found.reply_hops[-1]) if found.reply_hops else None
        there, back = _listened(ears, probe, end, going)
    return Heard(tuple(there), tuple(back), tuple(ears.values()))


def hear(namespaces: Namespaces, known: Map, wanted: Listen) -> Heard:
    """Listen on this host for what another one sends, until all is seen or LISTENING is over."""
    seen: tuple[set[Device], set[Device]] = (set(), set())
    deadline = time.monotonic() + LISTENING
    if len(wanted.mark) != MARK:
        raise Invalid(f"a mark has {MARK} bytes, and not {len(wanted.mark)}")
    with contextlib.ExitStack() as stack:
        ears = _ears(stack, namespaces, known, wanted)
        while (left := deadline - time.monotonic()) > 0:
            if seen[0].issuperset(wanted.there) and seen[1].issuperset(wanted.back):
                break
            for ear in select.select(list(ears), [], [], left)[0]:
                which = way(wanted.protocol, wanted.mark, ear.recv(65535))
                if which is not None:
                    seen[which].add(ears[ear])
    return Heard(tuple(seen[0]), tuple(seen[1]), tuple(ears.values()))


def _ears(
    stack: contextlib.ExitStack, namespaces: Namespaces, known: Map, wanted: Listen
) -> dict[socket.socket, Device]:
    by_name = {known.name(e.netns): e.netns for e in known.endpoints} | {"host": 0}
    ears = {}
    for name, device in dict.fromkeys((*wanted.there, *wanted.back)):
        if name not in by_name:
            continue
        with contextlib.suppress(OSError, LinkspanError), namespaces.entered(by_name[name]):
            ears[stack.enter_context(_ear(device))] = (name, device)
    return ears


def _device(hop: Hop) -> Device:
    return hop.namespace, hop.port or hop.device


def _ear(device: str) -> socket.socket:
    ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    try:
        ear.bind((device, _ALL))
    except OSError:
        ear.close()
        raise
    return ear


def _listened(
    ears: dict[socket.socket, Device], probe: Probe, end: Device | None, going: Callable[[], bool]
) -> tuple[set[Device], ...]:
    """Collect where the packet and its answer are seen, until the answer is at its end and all have listened."""
    seen: tuple[set[Device], ...] = (set(), set())
    now = time.monotonic()
    deadline, again = now + PATIENCE, now + AGAIN
    while (now := time.monotonic()) < deadline:
        # Once the answer is at its end, what the other devices saw before waits to be read.
        waiting = going()
        done = end is not None and end in seen[1] and not waiting
        if waiting and now >= again:
            probe.send()
            again = now + AGAIN
        left = (min(again, deadline) if waiting else deadline) - now
        ready, _, _ = select.select(list(ears), [], [], 0 if done else max(left, 0))
        for ear in ready:
            which = probe.way(ear.recv(65535))
            if which is not None:
                seen[which].add(ears[ear])
        if done and not ready:
            break
    return seen


def marked(found: Trace, heard: Mapping[str, Heard]) -> Trace:
    """Return the trace with each hop's ``seen`` set, by what was heard on each host."""
    hops = tuple(_with_seen(found.hops, {host: (h.there, h.ears) for host, h in heard.items()}))
    reply_hops = tuple(_with_seen(found.reply_hops, {host: (h.back, h.ears) for host, h in heard.items()}))
    told = msgspec.structs.replace(found, hops=hops, reply_hops=reply_hops)
    if not found.reachable or reply_hops[-1].seen:
        return told
    last = next((h for h in reversed((*hops, *reply_hops)) if h.seen), None)
    at = f"{last.host}/{last.namespace}/{last.port or last.device}" if last else None
    reason = f"every hop looks well, but no answer came; last seen at {at or 'no device'}"
    return msgspec.structs.replace(
        told, reachable=False, path_mtu=0, broken_at=at, reason=reason, verdict=BROKEN
    )


def _with_seen(
    hops: Iterable[Hop], heard: Mapping[str, tuple[tuple[Device, ...], tuple[Device, ...]]]
) -> Iterator[Hop]:
    for hop in hops:
        seen, ears = heard.get(hop.host, ((), ()))
        device = _device(hop)
        told = device in seen or (None if _encrypted(hop) else False)
        yield msgspec.structs.replace(hop, seen=told if device in ears else None)


def _encrypted(hop: Hop) -> bool:
    """Tell whether the packet is so in this hop that nobody who listens can know it again."""
    return any(header.split()[0] in (WIREGUARD, ESP) for header in hop.headers)
