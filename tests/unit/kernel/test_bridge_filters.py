"""Bridge filters: when they are put."""

from __future__ import annotations

from linkspan.core.states.host import Bridge, BridgeFilter, Veth
from linkspan.kernel.kinds import kinds


def test_a_bridge_is_filtered_before_it_has_a_port() -> None:
    """Also where it is made again: frames of its first port pass the rules."""
    known = {kind.state: kind.rank for kind in kinds()}
    assert known[Bridge] < known[BridgeFilter] < known[Veth]
