"""Differences of an object, field by field."""

from __future__ import annotations

import msgspec

from linkspan.core.states.host import Interface
from linkspan.core.states.programs import File
from linkspan.diagnose.plan.differences import differences

ETH0 = Interface(7, "eth0", bytes.fromhex("020000000001"), 1450)


def test_each_field_that_differs_is_told_with_what_it_is_and_should_be() -> None:
    """As iproute2 writes them."""
    there = msgspec.structs.replace(ETH0, mtu=1300, up=False, mac=bytes.fromhex("020000000002"))
    assert differences(there, ETH0) == [
        {"field": "mac", "is": "02:00:00:00:00:02", "should": "02:00:00:00:00:01"},
        {"field": "mtu", "is": "1300", "should": "1450"},
        {"field": "up", "is": "no", "should": "yes"},
    ]


def test_what_is_missing_or_as_desired_differs_in_nothing() -> None:
    """A missing object has no fields."""
    assert differences(None, ETH0) == differences(ETH0, ETH0) == []


def test_a_files_content_is_not_told() -> None:
    """It may be long, and a user who may see differences may not read the file."""
    wanted = File("/etc/one", b"wanted", 0o644)
    assert differences(msgspec.structs.replace(wanted, content=b"abcdef", mode=0o600), wanted) == [
        {"field": "content", "is": "other content", "should": "linkspan's"},
        {"field": "mode", "is": "0600", "should": "0644"},
    ]
