"""Decoder errors: they name the field, and its allowed values."""

from __future__ import annotations

import msgspec
import pytest

from linkspan.api.app import AttachBody
from linkspan.cluster.network_plans import NetworkRequest
from linkspan.core.errors import Invalid, closest, counted, of_validation
from linkspan.core.model import AttachRequest

REFUSED = [
    (NetworkRequest, {"name": "x", "ipam": "blocks"}, "ipam: 'blocks' is unknown; give one of block, exact"),
    (NetworkRequest, {"name": "x", "mtu": "1400"}, "mtu: expected a whole number, got text; look"),
    (NetworkRequest, {"name": "x", "mtu": 1400.5}, "mtu: expected a whole number, got a number; look"),
    (NetworkRequest, {"name": "x", "options": {"a": 1}}, "options[...]: expected text, got a whole number; look"),
    (NetworkRequest, {"name": "x", "pools": "10.0.0.0/8"}, "pools: expected a list, got text; look"),
    (NetworkRequest, {}, "name is missing; look"),
    (NetworkRequest, [], "expected an object, got a list; look"),
    (
        AttachRequest,
        {"id": "x", "network": "n", "ports": [{"host_ip": "", "host_port": 1, "port": 1, "protocol": "icmp"}]},
        "ports[0].protocol: 'icmp' is unknown; give one of tcp, udp, sctp",
    ),
    (
        AttachBody,
        {"id": "x", "network": "n", "namespace_fd": None},
        "namespace_fd: expected a whole number, got null; look",
    ),
]


@pytest.mark.parametrize(("kind", "given", "told"), REFUSED, ids=lambda one: str(one)[:40])
def test_a_field_is_named_with_what_it_takes(kind: type, given: object, told: str) -> None:
    """No word of the decoder's own types; words that a field may have are listed."""
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.json.decode(msgspec.json.encode(given), type=kind)
    assert of_validation(refused.value, kind, hint="look").told == told


def test_an_object_is_named_once() -> None:
    """An outer error does not name an object again that an inner one has named."""
    assert Invalid("no block is left").within("network x").message == "network x: no block is left"
    assert Invalid("network x: no block is left").within("network x").message == "network x: no block is left"
    assert Invalid("network x2 is full").within("network x").message == "network x: network x2 is full"


def test_names_that_look_alike_are_offered_and_others_are_not() -> None:
    """Else the hint is another one; and one thing is not several."""
    assert closest("fornt", ["front", "back"], "look") == "did you mean front?"
    assert closest("zzz", ["front", "back"], "look") == "look"
    assert closest("nowhere", ["other"], "look") == "look"
    assert (counted(1, "endpoint"), counted(2, "endpoint"), counted(0, "endpoint")) == (
        "1 endpoint",
        "2 endpoints",
        "0 endpoints",
    )
