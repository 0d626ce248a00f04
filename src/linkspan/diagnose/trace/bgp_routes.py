"""BGP routes in traces: where a route from BIRD came from, and why there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.core.errors import Unavailable
from linkspan.diagnose.trace.hops import show
from linkspan.kernel.probe import bird_control
from linkspan.kernel.probe.bird_control import Route

MOST = 3
"""Sessions named in one sentence."""


class Told(msgspec.Struct, frozen=True):
    """A session as last observed: its peer, BIRD's name, and why it is down ('' if it is up)."""

    peer: str
    protocol: str
    why: str


class Learning(msgspec.Struct, frozen=True):
    """A host's speaker: its control socket, its sessions, and the pools whose routes it learns."""

    control: Path
    sessions: Sequence[Told]
    pools: Sequence[Prefix]

    def origin(self, address: bytes, gateway: bytes) -> str:
        """Return who announced BIRD's route to an address by this next hop, the best if several did.

        If BIRD does not know it (any more), or does not answer, return only that it was learnt, which the
        kernel knows.
        """
        found: list[Route] = []
        with contextlib.suppress(Unavailable):
            found = self._routes(f"show route for {show(address)} all")
        hop = show(gateway) if gateway else ""
        used = (route for route in found if route.next_hops)
        best = max(used, key=lambda r: (hop in dict(r.next_hops), r.best), default=None)
        if best is None or not (peer := self._peer(best)):
            return "learnt by BGP"
        path = f", AS path {best.as_path}" if best.as_path else ""
        return f"learnt by BGP from {peer}{path}"

    def absence(self, address: bytes) -> str:
        """Return why no route to an address was learnt, '' for an address outside the pools."""
        if not any(pool.holds(Prefix(address, len(address) * 8)) for pool in self.pools):
            return ""
        down = [told for told in self.sessions if told.why]
        try:
            far = [r for r in self._routes(f"show route for {show(address)} all") if not r.next_hops and r.next_hop]
            refused = self._routes(f"show route filtered where {show(address)} ~ net all")
        except Unavailable as error:
            return error.message
        for route in far:
            if peer := self._peer(route):
                return f"{peer} announces {route.prefix} via {route.next_hop}, which is on no link of this host"
        if down:
            names = "; ".join(f"the BGP session with {told.peer} is down: {told.why}" for told in down[:MOST])
            more = f"; and {len(down) - MOST} more" if len(down) > MOST else ""
            return names + more
        for route in refused:
            if peer := self._peer(route):
                return f"{peer} announces {route.prefix}, but it is filtered: {route.refused or 'by a rule'}"
        names = ", ".join(told.peer for told in self.sessions[:MOST]) or "none"
        return f"no BGP peer announces it (established: {names})"

    def _routes(self, command: str) -> list[Route]:
        return bird_control.routes(bird_control.ask(self.control, command)[0])

    def _peer(self, route: Route) -> str:
        return next((told.peer for told in self.sessions if told.protocol == route.protocol), "")
