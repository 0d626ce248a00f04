"""Live trace: one real packet, the devices of the walk that saw it, and the rule that dropped it.

A packet socket listens at each device, on this host and, if their agents are asked to, on the others. In each
namespace of the walk nftables traces the packet (``kernel/probe/nft_trace``). A mark identifies the packet
and its answer (``live_packet``), whatever wraps or translates them.

The packet decides. An answer that reaches the sender proves both ways, whatever the walk could not read. A
packet without an answer has not arrived, however good every hop looks. One exception: a packet that left all
hosts of linkspan's may have arrived, because an outside host need not answer. It has the size of a usual
ping, and proves no larger one: if the walk is not certain, a second ping has the path's MTU. A SYN does not
prove the segments after it either.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from linkspan.core.errors import Invalid, LinkspanError, Unavailable
from linkspan.core.states.host import HOST
from linkspan.core.wire import ESP, WIREGUARD
from linkspan.diagnose.trace.capture import Device, Frame, Recorder, ear, received
from linkspan.diagnose.trace.hops import OUTSIDE, Hop, Map, Unknown, where
from linkspan.diagnose.trace.live_packet import BACK, MARK, THERE, Probe, attempt, matches, new_mark, way
from linkspan.diagnose.trace.packet import Packet
from linkspan.diagnose.trace.trace import BROKEN, REACHABLE, UNKNOWN, Place, Trace
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.probe.drop_monitor import DropMonitor
from linkspan.kernel.probe.nft_trace import RuleTrace

PATIENCE = 1.5
"""Seconds to wait for the answer: the kernel repeats a request for a neighbour after one second."""
AGAIN = 0.2
"""Seconds after which the packet is sent again while another host may not listen yet."""
LISTENING = 2.0
"""Seconds that a host listens for another one."""
HEARING = LISTENING + 4.0
"""Seconds to wait for what another host heard: the store takes the question and the answer, and a busy host takes its
time to put a trace into each namespace."""
LARGE = 0.5
"""Seconds to wait for the answer to the second ping: all neighbours are known by then."""
SETTLE = 0.05
"""Seconds for a namespace to process a packet after its device has seen it."""


class Goal(msgspec.Struct, frozen=True):
    """The device at which a packet for a container arrives by any path, and that device's host."""

    host: str
    device: Device


class Dropped(msgspec.Struct, frozen=True):
    """The part that dropped the packet (``way`` THERE) or its answer (BACK).

    ``by`` is a rule of the namespace, or the kernel's reason if ``namespace`` is ''.
    """

    namespace: str
    way: str
    by: str


class Listen(msgspec.Struct, frozen=True, tag="listen"):
    """Asks at which devices the packet with this mark and its answer are seen, and what drops them.

    A host that answers makes sockets and, in the namespaces of these devices, nftables traces while it
    listens; both end with it. With ``capture`` it also returns the frames.
    """

    mark: bytes
    there: tuple[Device, ...] = ()
    back: tuple[Device, ...] = ()
    protocol: str = "icmp"
    capture: bool = False


class Heard(msgspec.Struct, frozen=True, tag="heard"):
    """Places that saw the packet and its answer; ``ears`` are those at which somebody listened.

    ``drops`` are by rules of nftables, ``lost`` by any other part of a kernel that has a drop monitor.
    ``frames`` are those that were seen, if they were asked for.

    Only the sender's host sets ``answered`` (the answer reached the sender), ``reset`` (the answer is a RST,
    which a rule may have sent in the destination's name), ``refused`` (the sender's own rules dropped the
    packet) and ``proven`` (the bytes of the largest packet that was answered).
    """

    there: tuple[Device, ...] = ()
    back: tuple[Device, ...] = ()
    ears: tuple[Device, ...] = ()
    drops: tuple[Dropped, ...] = ()
    lost: tuple[Dropped, ...] = ()
    frames: tuple[Frame, ...] = ()
    answered: bool = False
    reset: bool = False
    refused: bool = False
    proven: int = 0


def goal(known: Map, target: Place) -> Goal | None:
    """Return where a packet for this end of a trace arrives; None if it is no container."""
    if target.netns in (HOST, OUTSIDE):
        return None
    there = known
    if target.host:
        other = known.others[target.host]
        there = Map(other.name, other.endpoints, known.networks)
    for one in there.endpoints:
        if one.netns == target.netns and any(p.packed in target.addresses for p in one.prefixes):
            return Goal(there.host, (there.name(one.netns), one.ifname))
    return None


def listening(found: Trace, goal: Goal | None, host: str, mark: bytes = b"", protocol: str = "icmp") -> Listen:
    """Return the devices at which a host must listen; the caller says whether it wants the frames."""
    ways = ([_device(h) for h in hops if h.device and h.host == host] for hops in (found.hops, found.reply_hops))
    there, back = (tuple(dict.fromkeys(devices)) for devices in ways)
    if goal is not None and goal.host == host:
        there = tuple(dict.fromkeys((*there, goal.device)))
    if found.hops and found.hops[0].device and found.hops[0].host == host:  # the sender's, at which the answer arrives
        back = tuple(dict.fromkeys((*back, _device(found.hops[0]))))
    return Listen(mark, there, back, protocol)


def end(found: Trace) -> Device | None:
    """Return the device at which the answer's walk ends."""
    return _device(found.reply_hops[-1]) if found.reply_hops else None


def unproven(found: Trace) -> int:
    """Return the path's known MTU if the walk could not prove that such packets pass; else 0."""
    known = found.path_mtu or (found.hops[-1].mtu if found.hops else 0)
    return known if found.verdict == UNKNOWN else 0


def send(
    namespaces: Namespaces,
    known: Map,
    source: Place,
    packet: Packet,
    wanted: Listen,
    end: Device | None = None,
    going: Callable[[], bool] = lambda: False,
    size: int = 0,
) -> Heard:
    """Send the packet (again, while others are ``going`` to listen), and return where this host sees it.

    ``end`` is where the answer's walk ends, ``size`` that of a second ping, 0 for none. Raises Invalid if the
    source is not on this host, or if no answer is known for the protocol.
    """
    if source.netns == OUTSIDE or source.host:
        raise Invalid(f"{source.name} is not on this host", "a live trace starts at a container or the host")
    if packet.protocol not in ("icmp", "tcp"):
        raise Invalid(f"a live trace cannot send {packet.protocol}", "leave --port out, or give a tcp port")
    with contextlib.ExitStack() as stack:
        rules = _rules(stack, namespaces, known, wanted, source.netns)
        ears = _ears(stack, namespaces, known, wanted)
        monitor = _monitor(stack)
        probe = Probe(packet, wanted.mark, lambda: namespaces.entered(source.netns))
        stack.callback(probe.close)
        probe.send()
        recorder = Recorder(wanted=wanted.capture)
        there, back = _listened(ears, probe, end, going, recorder)
        # A connection is refused by a RST, which is captured, or by an ICMP error, which is no answer of the
        # destination's.
        answered = probe.answered() and bool(back)
        proven = probe.size if answered else 0
        if answered and size > proven and packet.protocol == "icmp":
            proven = max(proven, _proven(namespaces, source, packet, size))
        return Heard(
            there=tuple(there), back=tuple(back), ears=tuple(ears.values()),
            drops=_drops(rules), lost=_lost(monitor, wanted), frames=recorder.frames(), answered=answered,
            reset=probe.reset, refused=probe.refused, proven=proven,
        )  # fmt: skip


def _proven(namespaces: Namespaces, source: Place, packet: Packet, size: int) -> int:
    """Return the size if a ping of that size is answered, else 0."""
    with contextlib.closing(Probe(packet, new_mark(), lambda: namespaces.entered(source.netns), size)) as probe:
        try:
            probe.send()
        except LinkspanError:  # larger than its own link allows
            return 0
        deadline = time.monotonic() + LARGE
        while not probe.answered() and (left := deadline - time.monotonic()) > 0:
            select.select(probe.sockets, [], [], left)
        return size if probe.answered() else 0


def hear(namespaces: Namespaces, known: Map, wanted: Listen) -> Heard:
    """Listen on this host for another host's packet, until all is seen or LISTENING is over."""
    seen: tuple[set[Device], set[Device]] = (set(), set())
    recorder = Recorder(wanted=wanted.capture)
    deadline = time.monotonic() + LISTENING
    if len(wanted.mark) != MARK:
        raise Invalid(f"a mark has {MARK} bytes, and not {len(wanted.mark)}")
    with contextlib.ExitStack() as stack:
        # first: rules must have seen every packet that the ears report
        rules = _rules(stack, namespaces, known, wanted)
        ears = _ears(stack, namespaces, known, wanted)
        monitor = _monitor(stack)
        while (left := deadline - time.monotonic()) > 0:
            if seen[0].issuperset(wanted.there) and seen[1].issuperset(wanted.back):
                break
            for one in select.select(list(ears), [], [], left)[0]:
                frame = received(one)
                which = way(wanted.protocol, wanted.mark, frame.data)
                if which is not None:
                    seen[which].add(ears[one])
                    recorder.add(ears[one], frame, back=bool(which), attempt=attempt(frame.data))
        time.sleep(SETTLE)
        return Heard(
            tuple(seen[0]), tuple(seen[1]), tuple(ears.values()), _drops(rules), _lost(monitor, wanted),
            recorder.frames(),
        )  # fmt: skip


def _by_name(known: Map) -> dict[str, int]:
    """Return the namespaces of this host by the names that hops give them."""
    return {known.name(e.netns): e.netns for e in known.endpoints} | {"host": HOST}


def _ears(
    stack: contextlib.ExitStack, namespaces: Namespaces, known: Map, wanted: Listen
) -> dict[socket.socket, Device]:
    by_name = _by_name(known)
    ears = {}
    for name, device in dict.fromkeys((*wanted.there, *wanted.back)):
        if name not in by_name:
            continue
        with contextlib.suppress(OSError, LinkspanError), namespaces.entered(by_name[name]):
            ears[stack.enter_context(ear(device))] = (name, device)
    return ears


def _rules(
    stack: contextlib.ExitStack, namespaces: Namespaces, known: Map, wanted: Listen, *more: int
) -> dict[str, RuleTrace]:
    """Start nftables traces in the host's namespace, in those of the devices, and in ``more``."""
    by_name = _by_name(known)
    devices: dict[str, list[str]] = {known.name(netns): [] for netns in (HOST, *more)}
    for name, device in dict.fromkeys((*wanted.there, *wanted.back)):
        devices.setdefault(name, []).append(device)
    found = {}
    for name, listed in devices.items():
        if name not in by_name:
            continue
        # Without nftables, or without the right to use it, only the devices show how far the packet comes.
        with contextlib.suppress(OSError, LinkspanError), namespaces.entered(by_name[name]):
            there = [device for device in listed if device in {name for _, name in socket.if_nameindex()}]
            found[name] = RuleTrace(wanted.mark[:4].hex(), matches(wanted.protocol, wanted.mark), there)
            stack.callback(found[name].close)
    return found


def _drops(rules: Mapping[str, RuleTrace]) -> tuple[Dropped, ...]:
    found = []
    for namespace, trace in rules.items():
        trace.read()
        found += [Dropped(namespace, drop.name, drop.described()) for drop in trace.drops()]
    return tuple(found)


def _monitor(stack: contextlib.ExitStack) -> DropMonitor | None:
    try:
        found = DropMonitor()
    except Unavailable:
        return None
    stack.callback(found.close)
    return found


def _lost(monitor: DropMonitor | None, wanted: Listen) -> tuple[Dropped, ...]:
    """Return the kernel's reasons for dropping the packet or its answer."""
    found: dict[Dropped, None] = {}
    for lost in monitor.read() if monitor else ():
        which = way(wanted.protocol, wanted.mark, lost.packet)
        if which is not None:
            came = f", received by {lost.came_by}" if lost.came_by else ""
            found[Dropped("", (THERE, BACK)[which], f"{lost.reason} (in {lost.function}{came})")] = None
    return tuple(found)


def _device(hop: Hop) -> Device:
    return hop.namespace, hop.port or hop.device


def _listened(
    ears: dict[socket.socket, Device], probe: Probe, end: Device | None, going: Callable[[], bool], recorder: Recorder
) -> tuple[set[Device], ...]:
    """Collect where the packet and its answer are seen, until the answer is at its end and all have listened.

    While another host is asked, the packet is sent again: that host may begin to listen late.
    """
    seen: tuple[set[Device], ...] = (set(), set())
    now = time.monotonic()
    deadline, again = now + PATIENCE, now + AGAIN
    while (waiting := going()) or time.monotonic() < deadline:
        now = time.monotonic()
        # Once the answer has arrived, packets that other devices saw before wait to be read.
        done = (end is None or end in seen[1] or end not in ears.values()) and not waiting and probe.answered()
        if waiting and now >= again:
            probe.send()
            again = now + AGAIN
        left = (again if waiting else min(deadline, now + AGAIN)) - now
        ready, _, _ = select.select([*ears, *probe.sockets], [], [], 0 if done else max(left, 0))
        heard = [one for one in ready if one in ears]
        for one in heard:
            frame = received(one)
            which = probe.way(frame.data)
            if which is not None:
                seen[which].add(ears[one])
                recorder.add(ears[one], frame, back=bool(which), attempt=attempt(frame.data))
        if done and not heard:
            break
    return seen


def marked(found: Trace, heard: Mapping[str, Heard], sender: str, goal: Goal | None = None) -> Trace:
    """Return the trace as the packet decides it, with each hop's ``seen`` set, from what each host captured.

    ``sender`` is the host that sent the packet.
    """
    hops = tuple(_with_seen(found.hops, {host: (h.there, h.ears) for host, h in heard.items()}))
    reply_hops = tuple(_with_seen(found.reply_hops, {host: (h.back, h.ears) for host, h in heard.items()}))
    told = msgspec.structs.replace(found, hops=hops, reply_hops=reply_hops)
    arrived = _arrived(heard, goal, hops, found)
    own = heard[sender]
    rejected = own.reset and any(drop.way == THERE for h in heard.values() for drop in h.drops)
    foreign = own.reset and told.listens
    if own.answered and arrived is not False and not rejected and not foreign:
        return _proved(told, own.proven)
    last = next((h for h in reversed((*hops, *reply_hops)) if h.seen), None)
    if _left(told, heard):
        unknown = tuple(_unanswered(one) if one.beyond else one for one in told.unknown)
        return msgspec.structs.replace(told, unknown=unknown, reason=unknown[0].why)
    at, reason = _end(told, heard, last, arrived=arrived, sender=sender)
    return msgspec.structs.replace(
        told, reachable=False, path_mtu=0, broken_at=at, reason=reason, verdict=BROKEN
    )


def _arrived(heard: Mapping[str, Heard], goal: Goal | None, hops: Sequence[Hop], found: Trace) -> bool | None:
    """Return whether the packet reached its end; None if nobody could listen there."""
    if goal is None:
        return hops[-1].seen if found.verdict != BROKEN and hops else None
    there = heard.get(goal.host, Heard())
    return goal.device in there.there if goal.device in there.ears else None


def _left(told: Trace, heard: Mapping[str, Heard]) -> bool:
    """Return whether the packet was seen to leave for the outside, with no stop on this side."""
    looked = [hop for hop in told.hops if hop.seen is not None]
    if told.verdict != UNKNOWN or not looked or not looked[-1].seen:
        return False
    left = any(one.beyond and one.at == where(told.hops[-1]) for one in told.unknown)
    dropped = any(h.drops or h.lost or h.refused for h in heard.values())
    return left and not dropped and not any(hop.seen for hop in told.reply_hops)


def _unanswered(one: Unknown) -> Unknown:
    return msgspec.structs.replace(one, why=f"{one.why}; a packet left there, and no answer came")


def _proved(told: Trace, size: int) -> Trace:
    """Return the trace of a packet that was answered; the walk's doubts about it no longer count.

    It proves no packet larger than itself, and nothing about later ones.
    """
    if told.verdict == REACHABLE:
        return told
    if left := tuple(one for one in told.unknown if one.later):
        reason = f"a real packet was answered, which does not show what follows it: at {left[0].at}: {left[0].why}"
        return msgspec.structs.replace(
            told, path_mtu=size, broken_at=None, reason=reason, verdict=UNKNOWN, unknown=left
        )
    if told.verdict == UNKNOWN and all(one.beyond for one in told.unknown):  # the answer came from there
        return msgspec.structs.replace(
            told, reachable=True, path_mtu=size, reason="", verdict=REACHABLE, unknown=()
        )
    if told.broken_at:
        seen = f"{told.broken_at} looks otherwise: {told.reason}"
    else:
        seen = f"what {told.unknown[0].at} does is not known: {told.unknown[0].why}"
    doubt = f"a real packet was answered, though {seen}"
    return msgspec.structs.replace(
        told, reachable=True, path_mtu=size, broken_at=None, reason=doubt, verdict=REACHABLE, unknown=()
    )


def _end(
    told: Trace, heard: Mapping[str, Heard], last: Hop | None, *, arrived: bool | None, sender: str
) -> tuple[str | None, str]:
    """Return where the packet or its answer ended, and why, certain reasons first."""
    own = heard[sender]
    source = told.hops[0] if told.hops else None
    seen = where(last) if last else None
    order = (BACK, THERE) if arrived else (THERE, BACK)
    drops = [(host, drop) for host, h in heard.items() for drop in h.drops]
    for host, drop in sorted((d for d in drops if d[1].way in order), key=lambda d: order.index(d[1].way)):
        place = f"{host}/{drop.namespace}"
        what = "the packet" if drop.way == THERE else "the answer"
        device = next((at for at in (told.broken_at, seen) if at and at.startswith(f"{place}/")), place)
        return device, f"{what} was dropped by {drop.by}"
    if own.refused and source:
        return where(source), f"the rules in {source.namespace} do not let it send the packet (EPERM)"
    if own.reset and told.listens and arrived is not False:
        why = "".join(f"; at {one.at}: {one.why}" for one in told.unknown)
        return seen, f"the connection is refused, though a socket listens there: something else answered{why}"
    if own.answered and told.verdict != BROKEN:
        return seen, f"something else answered: the packet never reached its end; last seen at {seen or 'no device'}"
    if told.reply_hops and told.reply_hops[-1].seen:
        end = told.reply_hops[-1]
        return where(end), f"the answer reached {end.device}, but {end.namespace} itself drops it there"
    reasons = [drop for h in heard.values() for drop in h.lost if drop.way in order]
    kernel = f"; the kernel's reason: {reasons[0].by}" if reasons else ""
    if told.verdict == BROKEN:
        return told.broken_at, told.reason + kernel
    after = f"no answer came; last seen at {seen or 'no device'}{kernel}"
    if told.verdict == UNKNOWN:
        why = "; ".join(f"at {one.at}: {one.why}" for one in told.unknown)
        return seen, f"{after}; unknown: {why}"
    return seen, f"every hop looks ok, but {after}"


def _with_seen(
    hops: Iterable[Hop], heard: Mapping[str, tuple[tuple[Device, ...], tuple[Device, ...]]]
) -> Iterator[Hop]:
    for hop in hops:
        seen, ears = heard.get(hop.host, ((), ()))
        device = _device(hop)
        told = device in seen or (None if _encrypted(hop) else False)
        yield msgspec.structs.replace(hop, seen=told if device in ears else None)


def _encrypted(hop: Hop) -> bool:
    """Return whether the packet is encrypted in this hop, so that no listener can recognise it."""
    return any(header.split()[0] in (WIREGUARD, ESP) for header in hop.headers)
