"""Trace requests, from a user's words to the result: the parts that run in a thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from linkspan.core.states.host import HOST
from linkspan.diagnose.trace import between_hosts, live
from linkspan.diagnose.trace.bgp_routes import Learning
from linkspan.diagnose.trace.hops import OUTSIDE, Map
from linkspan.diagnose.trace.kernel_answers import KernelAnswers
from linkspan.diagnose.trace.kernel_view import Packet
from linkspan.diagnose.trace.live import Device, Heard, Listen
from linkspan.diagnose.trace.live_packet import new_mark
from linkspan.diagnose.trace.parts import Entry, Part
from linkspan.diagnose.trace.trace import Asking, Place, Trace, Unanswered, chosen, place, port, trace
from linkspan.diagnose.trace.walk import sourced
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.probe.wireguard_device import Table


class Local:
    """This machine's part of traces.

    May be used in any thread in the host's namespace. ``table`` is the user-space IPIP helper's, ``learning``
    the host's BGP speaker, ``wireguard`` returns the WireGuard device, ``ike`` is strongSwan's socket.
    """

    def __init__(
        self,
        namespaces: Namespaces,
        known: Map,
        table: Path | None = None,
        learning: Learning | None = None,
        wireguard: Callable[[], Table | None] = lambda: None,
        ike: Path | None = None,
    ) -> None:
        self._ike = ike
        self._wireguard = wireguard
        self._namespaces = namespaces
        self._known = known
        self._table = table
        self._learning = learning

    def begin(self, source: str, target: str, to: str = "") -> tuple[Place, Place, Packet]:
        """Find the ends and the packet. Raises NotFound, Conflict or Invalid if the words do not identify them."""
        asked = KernelAnswers(self._namespaces, self._table)
        try:
            wanted = port(to)
            first, last = place(source, self._known, asked), place(target, self._known, asked)
            return first, last, chosen(asked, self._known, first, last, wanted)
        finally:
            asked.close()

    def part(self, entry: Entry) -> Part:
        """Walk through this host."""
        asked = KernelAnswers(self._namespaces, self._table, self._learning, self._wireguard, self._ike)
        try:
            return between_hosts.part(asked, self._known, entry)
        finally:
            asked.close()

    def send(
        self,
        source: Place,
        packet: Packet,
        wanted: Listen,
        end: Device | None,
        going: Callable[[], bool] = lambda: False,
        size: int = 0,
    ) -> Heard:
        """Send a real packet (up to 1.5 s), and listen for it; if it is answered, send one of ``size`` bytes, too."""
        if source.netns not in (HOST, OUTSIDE):
            asked = KernelAnswers(self._namespaces)
            try:
                packet = sourced(asked, self._known, source.netns, packet)
            finally:
                asked.close()
        return live.send(self._namespaces, self._known, source, packet, wanted, end, going, size)

    def hear(self, wanted: Listen) -> Heard:
        """Listen for another host's packet (up to 2 s)."""
        return live.hear(self._namespaces, self._known, wanted)


def run(
    namespaces: Namespaces, known: Map, source: str, target: str, to: str = "", *, alive: bool = False
) -> Trace:
    """Trace on this host alone, with ``alive`` also by a real packet."""
    local = Local(namespaces, known)
    first, last, packet = local.begin(source, target, to)
    found = _alone(local, trace(known, first, last, packet))
    if not alive:
        return found
    goal = live.goal(known, last)
    wanted = live.listening(found, goal, known.host, new_mark(), packet.protocol)
    own = local.send(first, packet, wanted, live.end(found), size=live.unproven(found))
    return live.marked(found, {known.host: own}, known.host, goal)


def _alone(local: Local, going: Asking) -> Trace:
    answer: Part | Unanswered | None = None
    while True:
        try:
            host, entry = going.send(answer) if answer is not None else next(going)
        except StopIteration as end:
            found: Trace = end.value
            return found
        answer = Unanswered("no other host is asked") if host else local.part(entry)
