"""Trace requests, from a user's words to the result: the parts that run in a thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from linkspan.core.states.host import HOST
from linkspan.diagnose.trace import between_hosts, live
from linkspan.diagnose.trace.bgp_routes import Learning
from linkspan.diagnose.trace.capture import Device
from linkspan.diagnose.trace.hops import OUTSIDE, Map
from linkspan.diagnose.trace.kernel_answers import KernelAnswers
from linkspan.diagnose.trace.live import Heard, Listen
from linkspan.diagnose.trace.packet import Packet
from linkspan.diagnose.trace.parts import Entry, Part
from linkspan.diagnose.trace.trace import Place, chosen, place, port
from linkspan.diagnose.trace.walk import sourced
from linkspan.kernel.io.namespaces import Namespaces


class Local:
    """This machine's part of traces.

    May be used in any thread in the host's namespace. ``state_dir`` is the agent's state folder, ``learning`` the
    host's BGP speaker.
    """

    def __init__(
        self,
        namespaces: Namespaces,
        known: Map,
        state_dir: Path,
        learning: Learning | None = None,
    ) -> None:
        self._namespaces = namespaces
        self._known = known
        self._state_dir = state_dir
        self._learning = learning

    def begin(self, source: str, target: str, to: str = "") -> tuple[Place, Place, Packet]:
        """Find the ends and the packet. Raises NotFound, Conflict or Invalid if the words do not identify them."""
        with contextlib.closing(KernelAnswers(self._namespaces, self._state_dir)) as asked:
            wanted = port(to)
            first, last = place(source, self._known, asked), place(target, self._known, asked)
            return first, last, chosen(asked, self._known, first, last, wanted)

    def part(self, entry: Entry) -> Part:
        """Walk through this host."""
        with contextlib.closing(KernelAnswers(self._namespaces, self._state_dir, self._learning)) as asked:
            return between_hosts.part(asked, self._known, entry)

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
            with contextlib.closing(KernelAnswers(self._namespaces)) as asked:
                packet = sourced(asked, self._known, source.netns, packet)
        return live.send(self._namespaces, self._known, source, packet, wanted, end, going, size)

    def hear(self, wanted: Listen) -> Heard:
        """Listen for another host's packet (up to 2 s)."""
        return live.hear(self._namespaces, self._known, wanted)
