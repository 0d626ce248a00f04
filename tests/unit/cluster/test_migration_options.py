"""Options of a network that migrates."""

from __future__ import annotations

import pytest

from linkspan.cluster.network_plans import migrated
from linkspan.core.errors import Invalid
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


def test_a_direct_network_becomes_fast_by_two_options() -> None:
    """The migration keeps direct=true, which excludes fast=true, so the message says what to give."""
    there = network(backend="ipip", options={"direct": "true"}, mtu=1400)
    with pytest.raises(Invalid) as refused:
        migrated(there, "vxlan", {"fast": "true"}, [there], HERE, [], [])
    assert "--opt fast=true --opt direct=false" in refused.value.hint
    back = migrated(there, "vxlan", {"fast": "true", "direct": "false"}, [there], HERE, [], []).target
    assert back is not None
    assert back.options["fast"] == "true"


def test_another_option_of_the_same_backend_is_two_migrations() -> None:
    """Both refusals say so: that of `update`, and that of `migrate`."""
    first = network(options={"fast": "true", "vni": "7"}, mtu=1400)
    with pytest.raises(Invalid) as refused:
        migrated(first, "vxlan", {"fast": "false"}, [first], HERE, [], [])
    assert "to another backend, and then back to vxlan with --opt" in refused.value.hint
