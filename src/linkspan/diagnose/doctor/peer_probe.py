"""Peer probe: one host's part of ``doctor --peers``. It sends its peers what each network needs, and listens.

All hosts of a group do the same at about the same time, and each gets one request. It listens at once, waits
until the others listen (WARM), sends everything ROUNDS times, and finally reports what it missed. Nobody keeps
state in between. Agents get a request within WARM of each other, or else take part from a later round.

A probe is a packet of exactly the protocol and size that the network needs, which no socket, device or
container accepts (``Need``). Its tail names sender, receiver, need and size, by a hash that the receiver
expects. It is captured as it comes in, before any rule. Then the host checks its own rules, which may drop it
nevertheless.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.host_view import Peer
from linkspan.core.needs import Need
from linkspan.core.states.host import HOST
from linkspan.diagnose.trace.kernel_view import KernelView, client_ports
from linkspan.diagnose.trace.packet import Packet
from linkspan.kernel.io import packets
from linkspan.kernel.io.packets import Arrival, Ear, Sender
from linkspan.kernel.probe import arp

if TYPE_CHECKING:
    from linkspan.diagnose.trace.verdict import Verdict

WARM = 1.0
ROUNDS = 3
BETWEEN = 0.7
"""Seconds between rounds."""
LASTS = 4.0
"""Seconds, beyond those for sending, after which a host reports what it missed; sooner if everything has arrived."""
SMALL = 200
STEPS = (1280, 1400, 1450, 1480, 1492, 1500, 4000, 8900)
"""Sizes below the needed one, to find one that passes: IPv6's minimum, and usual MTUs of links and tunnels."""
BURST, PAUSE = 64, 0.004
"""Packets at a time, and seconds between: 16,000 a second, less the time for making them."""
PACE = 1e-4
"""Seconds for each packet with both (measured)."""
TOLD = 64
"""Faults that a host reports; it only counts the rest."""


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """Asks a host to take part in the run that these bytes identify, which is its group's.

    A host finds the others of its group by a hash, because their list in each question would go to every host.
    """

    session: bytes
    groups: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1

    def group(self, host: str) -> int:
        """Return the number of the group that a host, by its id, is in."""
        digest = hashlib.blake2b(host.encode(), key=self.session, digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.groups


class Gap(msgspec.Struct, frozen=True):
    """A packet that a host misses from a peer: ``heard`` is the size of the largest packet received, 0 for none.

    ``dropped`` says which rule of the host drops those that arrive, '' if all accept.
    """

    peer: str
    what: str
    size: int
    heard: int
    fix: str
    dropped: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """A packet that a host cannot send to a peer (``what``, as text).

    ``sent`` is the largest size, in bytes, that the host could send. ``spare``: another path exists.
    """

    peer: str
    what: str
    why: str
    fix: str
    sent: int = 0
    spare: bool = False


class Carried(msgspec.Struct, frozen=True):
    """From how many peers something arrived completely, and in which size."""

    what: str
    size: int
    count: int


class Probed(msgspec.Struct, frozen=True, tag="probed"):
    """The findings of a host; ``left_out`` counts faults that are not reported.

    ``down`` is its own link to the others if nothing can pass it: this explains all its faults.
    """

    gaps: tuple[Gap, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    carried: tuple[Carried, ...] = ()
    left_out: int = 0
    down: str = ""


class Wanted(msgspec.Struct, frozen=True):
    """A need between this host and a peer; ``mtu`` is the network's, the largest inner packet.

    ``others`` are those of other networks for which this one is tried, too.
    """

    peer: Peer
    need: Need
    network: str
    mtu: int
    others: tuple[Wanted, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """Return the peer's id, and the need's name."""
        return self.peer.host.id, self.need.what

    @property
    def family(self) -> int:
        """Return the outer header's family: 4 or 6."""
        return 4 if len(self.need.target) == 4 else 6

    def smaller(self, size: int) -> str:
        """Return what to do for each network that needs more, if no packets larger than this size pass."""
        return "; ".join(
            f"linkspan network update {one.network} --mtu {size - (one.need.size - one.mtu)}"
            for one in (*self.others, self)
            if one.need.size > size
        )


def largest(wanted: Iterable[Wanted]) -> list[Wanted]:
    """Return each need of a peer once, in the largest size: networks may share it."""
    found: dict[tuple[str, str], list[Wanted]] = {}
    for one in sorted(wanted, key=lambda w: (w.need.size, w.network)):
        found.setdefault(one.key, []).append(one)
    return [msgspec.structs.replace(last, others=tuple(others)) for *others, last in found.values()]


def sizes(need: Need) -> tuple[int, ...]:
    """Return the sizes in which a need is tried."""
    return (*(size for size in (SMALL, *STEPS) if size < need.size), need.size)


def lasts(wanted: Iterable[Wanted]) -> float:
    """Return the seconds after which a host reports what it missed: 4 for a few hosts, 6 for a thousand."""
    return LASTS + ROUNDS * PACE * sum(len(sizes(one.need)) for one in wanted)


def _tail(session: bytes, source: str, target: str, what: str, size: int) -> bytes:
    text = "\0".join((source, target, what, str(size))).encode()
    own = hashlib.blake2b(text, key=session, digest_size=packets.OWN).digest()
    return session[: packets.COMMON] + own


def run(
    asked: KernelView, session: bytes, host: str, link: str, wanted: Sequence[Wanted], refused: Sequence[Refusal]
) -> Probed:
    """Take part: for as long as ``lasts`` says, in a thread of the host's namespace.

    ``link`` is the host's to the others ('' for none), and ``refused`` what is impossible from the start.

    Raises KernelError if the machine allows no raw sockets.
    """
    expected = {
        _tail(session, w.peer.host.id, host, w.need.what, size)[packets.COMMON :]: (w.key, size)
        for w in wanted
        for size in sizes(w.need)
    }
    heard: dict[tuple[str, str], dict[int, Arrival]] = {}
    start = time.monotonic()
    with contextlib.closing(Ear(session[: packets.COMMON])) as ear, contextlib.closing(Sender()) as sender:

        def listen(until: float) -> None:
            while True:
                for came in ear.heard(until - time.monotonic()):
                    if came.tail in expected:
                        key, size = expected[came.tail]
                        heard.setdefault(key, {}).setdefault(size, came)
                if time.monotonic() >= until:
                    return

        out = _Outgoing(asked, sender, session, host, wanted)
        out.find()
        for number in range(ROUNDS):
            listen(start + WARM + number * BETWEEN)
            for _ in out.burst():
                listen(time.monotonic() + PAUSE)
        while time.monotonic() < start + lasts(wanted) and sum(map(len, heard.values())) < len(expected):
            listen(time.monotonic() + 0.05)
    found = _told(asked, wanted, heard, [*refused, *out.refusals()])
    return found if heard or not link or passes(asked, link) else msgspec.structs.replace(found, down=link)


def passes(asked: KernelView, link: str) -> bool:
    """Return whether a link of the host can carry packets: it exists, is up, and so is its other end."""
    device = asked.device(HOST, link)
    return device is not None and device.up and (device.carrier or device.kind == "bridge")


class _Outgoing:
    """Packets that this host sends; those that cannot be sent are kept with the reason."""

    def __init__(
        self, asked: KernelView, sender: Sender, session: bytes, host: str, wanted: Sequence[Wanted]
    ) -> None:
        self._asked = asked
        self._sender = sender
        self._session = session
        self._host = host
        self._wanted = wanted
        self._macs: dict[tuple[str, bytes], bytes] = {}
        self._sent: dict[tuple[str, str], int] = {}
        self._errors: dict[tuple[str, str], KernelError] = {}

    def find(self) -> None:
        """Look for the neighbours that get plain packets."""
        links: dict[str, dict[bytes, bytes]] = {}
        for one in self._wanted:
            if one.need.neighbour and one.peer.on_link:
                route = self._asked.route(HOST, Packet(b"", one.need.neighbour))
                links.setdefault(one.peer.device, {})[one.need.neighbour] = route.source
        for link, addresses in links.items():
            self._macs |= {(link, a): mac for a, mac in arp.answering(link, addresses).items()}

    def burst(self) -> Iterator[None]:
        """Send everything once; yield after every BURST."""
        number = 0
        for one in self._wanted:
            for size in sizes(one.need):
                tail = _tail(self._session, self._host, one.peer.host.id, one.need.what, size)
                try:
                    if not self._send(one, packets.packet(one.need, size, tail)):
                        break
                    self._sent[one.key] = max(size, self._sent.get(one.key, 0))
                except KernelError as error:
                    self._errors[one.key] = error
                number += 1
                if number % BURST == 0:
                    yield

    def _send(self, one: Wanted, packet: bytes) -> bool:
        if not one.need.neighbour:
            self._sender.route(packet, one.need.target)
            return True
        place = one.peer.device, one.need.neighbour
        if place in self._macs:
            self._sender.hand(packet, one.peer.device, self._macs[place])
        return place in self._macs

    def refusals(self) -> Iterator[Refusal]:
        """Yield what was not sent, or not in its full size."""
        for one in self._wanted:
            sent = self._sent.get(one.key, 0)
            if sent == one.need.size:
                continue
            (peer, what), fix = one.key, one.need.fix
            error = self._errors.get(one.key)
            if error is None:
                address = Prefix(one.need.neighbour, 0).address
                why = (
                    f"nobody answers for {address} on {one.peer.device}"
                    if one.peer.on_link
                    else f"a router is between this host and {address}"
                )
                yield Refusal(peer, what, why, fix, 0, one.need.spare)
            elif error.errno == errno.EMSGSIZE:
                link = one.peer.device
                device = self._asked.device(HOST, link)
                mtu = device.mtu if device is not None else sent
                why = f"its own link {link} takes {mtu} bytes, and packets of {one.need.size} are needed"
                fix = f"ip link set {link} mtu {one.need.size} there, or: {one.smaller(mtu)}"
                yield Refusal(peer, what, why, fix, sent)
            elif error.errno == errno.EPERM:
                why = "its own firewall drops it (output)"
                yield Refusal(peer, what, why, f"on that host: {fix}", sent)
            elif error.errno == errno.ENOBUFS:
                why = "the kernel has no room for it: its neighbour table is full (`dmesg`), or the link's queue"
                fix = f"sysctl -w net.ipv{one.family}.neigh.default.gc_thresh3=8192: all namespaces share it"
                yield Refusal(peer, what, why, fix, sent)
            else:
                yield Refusal(peer, what, error.message, "`linkspan trace` shows the path", sent)


def _told(
    asked: KernelView,
    wanted: Sequence[Wanted],
    heard: Mapping[tuple[str, str], Mapping[int, Arrival]],
    refusals: Sequence[Refusal],
) -> Probed:
    gaps: list[Gap] = []
    carried: dict[str, tuple[int, int]] = {}
    for one in wanted:
        came = heard.get(one.key, {})
        most = max(came, default=0)
        dropped = _dropped(asked, one.need, came[most]) if came else ""
        if most == one.need.size and not dropped:
            size, count = carried.get(one.need.what, (0, 0))
            carried[one.need.what] = max(size, most), count + 1
        else:
            larger = f"let packets of {one.need.size} bytes pass (the MTU of links and tunnels between), or: "
            fix = larger + one.smaller(most) if most and not dropped else one.need.fix
            gaps.append(Gap(*one.key, one.need.size, most, fix, dropped))
    return Probed(
        tuple(gaps[:TOLD]),
        tuple(refusals[:TOLD]),
        tuple(Carried(what, *figures) for what, figures in carried.items()),
        max(len(gaps) - TOLD, 0) + max(len(refusals) - TOLD, 0),
    )


def _dropped(asked: KernelView, need: Need, came: Arrival) -> str:
    """Return which rule of this host drops the received packets, '' if all accept."""
    if came.protocol != packets.NUMBERS[need.protocol]:
        return f"it arrives as IP protocol {came.protocol}: something on the path has changed it"
    # The probe's own source port means nothing: those from which the tunnel sends count. The sender is not
    # asked; it chooses from the range that this host has: Linux's default, unless somebody set it.
    sent = Packet(came.source, came.target, need.protocol, need.port)
    try:
        ports = (need.port, need.port) if need.from_port else client_ports(asked, HOST)
        one = msgspec.structs.replace(sent, source_port=ports[0] or sent.source_port)
        packet = one.sent_by(ports)
        verdicts = _judged(asked, need, came, packet)
        sure = {rule for verdict in _judged(asked, need, came, one) for rule in verdict.unsure}
    except LinkspanError:
        return ""
    if (verdict := next((found for found in verdicts if not found.passes), None)) is not None:
        from linkspan.diagnose.trace.rule_meanings import is_ours, meaning

        why = f" ({meaning(verdict.by, packet)})" if is_ours(verdict.by) else ""
        return f"{verdict.where} drops it: {verdict.rule}{why}"
    some = [rule for found in verdicts for rule in found.unsure if rule not in sure]
    return f"a rule drops it from some of the source ports {ports[0]} to {ports[1]}: {some[0]}" if some else ""


def _judged(asked: KernelView, need: Need, came: Arrival, packet: Packet) -> list[Verdict]:
    """Return the hooks' verdict on a packet that arrives like a probe."""
    from linkspan.diagnose.trace import netfilter_hooks  # 0.3 MB with all verdicts
    from linkspan.diagnose.trace.verdict import Frame

    frame = Frame(packet, came.device, mac=came.mac)
    # A plain packet would be forwarded to a container, after the guard.
    at = ("prerouting",) if need.neighbour else ("prerouting", "input")
    return [netfilter_hooks.passed(asked, hook, frame) for hook in at]
