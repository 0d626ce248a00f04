"""Options of a network that migrates."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkspan.core.model import Underlay
from linkspan.store.memory import Memory
from support.records.replicas import Member, network

HERE = Underlay("eth0", ("192.0.2.1/24",), mtu=1500)


@pytest.mark.parametrize(("between", "kept"), [("ipip", True), ("wireguard", False)])
def test_an_option_that_both_backends_have_survives_there_and_back(tmp_path: Path, between: str, kept: bool) -> None:
    """direct=true exists in both tunnels and not in WireGuard; the migration's own options have priority."""
    networks = Member(Memory(), tmp_path, "h1").networks
    first = network(options={"direct": "true", "vni": "7"}, mtu=1400)
    there = networks.migrated(first, between, {}, HERE, []).target
    assert there is not None
    assert there.options == ({"direct": "true"} if kept else {})
    back = networks.migrated(there, "vxlan", {}, HERE, []).target
    assert back is not None
    assert (back.options.get("direct") == "true") == kept
    given = networks.migrated(there, "vxlan", {"direct": "false"}, HERE, []).target
    assert given is not None
    assert given.options["direct"] == "false"
