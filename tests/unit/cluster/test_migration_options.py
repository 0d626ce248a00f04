"""Options of a network that migrates."""

from __future__ import annotations

import pytest

from linkspan.cluster.network_plans import migrated
from linkspan.core.model import Underlay
from support.records.replicas import network

HERE = Underlay("eth0", ("192.0.2.1/24",), mtu=1500)


@pytest.mark.parametrize(("between", "kept"), [("ipip", True), ("wireguard", False)])
def test_an_option_that_both_backends_have_survives_there_and_back(between: str, kept: bool) -> None:
    """direct=true exists in both tunnels and not in WireGuard; the migration's own options have priority."""
    first = network(options={"direct": "true", "vni": "7"}, mtu=1400)
    there = migrated(first, between, {}, [first], HERE, [], []).target
    assert there is not None
    assert there.options == ({"direct": "true"} if kept else {})
    back = migrated(there, "vxlan", {}, [there], HERE, [], []).target
    assert back is not None
    assert (back.options.get("direct") == "true") == kept
    given = migrated(there, "vxlan", {"direct": "false"}, [there], HERE, [], []).target
    assert given is not None
    assert given.options["direct"] == "false"
