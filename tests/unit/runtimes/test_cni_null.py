"""Null in a CNI call: Go writes it for each list, map and pointer that was not set, and it means absent."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from linkspan.runtimes.cni import cni_types
from linkspan.runtimes.cni.cni_types import Conf
from support.cni.cni_agent import FakeAgent
from support.cni.cni_calls import VERSIONS, Runtime, conf
from support.cni.cni_whole import WHOLE, Place, inside, needed, nulled, places


def removed(place: Place, version: str) -> dict[str, Any]:
    """Return the configuration without what is at a place; addresses count the interfaces that are left."""
    made = copy.deepcopy(conf(version, **WHOLE))
    del inside(made, place)[place[-1]]
    if place[:2] == ("prevResult", "interfaces") and len(place) == 3:
        for ip in made["prevResult"]["ips"]:
            if ip["interface"] == place[-1]:
                del ip["interface"]
            elif ip["interface"] > int(place[-1]):
                ip["interface"] -= 1
    return made


EVERY = list(places(conf(**WHOLE)))


def structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """Yield the structs that a type is made of."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for inner in get_type_hints(kind).values():
            yield from structs(inner)
    for inner in get_args(kind):
        yield from structs(inner)


def test_every_key_that_is_known_is_tried() -> None:
    """The configuration here has each field of each type that a configuration is parsed into."""
    tried = {str(part) for place in EVERY for part in place}
    for kind in set(structs(Conf)):
        known = {field.encode_name for field in msgspec.structs.fields(kind)} - {"foreign"}
        assert known <= tried, f"{kind.__name__}: {known - tried}"
    assert len(set(structs(cni_types.Conf))) > 10


@pytest.mark.parametrize("place", EVERY, ids=lambda place: ".".join(map(str, place)))
@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
def test_null_is_as_if_it_were_not_there(command: str, place: Place) -> None:
    """A call with null has the same answer and the same request to the agent as without the key or element."""
    for version in (VERSIONS[0], VERSIONS[-1]) if command == "ADD" else VERSIONS[-1:]:
        seen = []
        for given in (nulled(place, version), removed(place, version)):
            runtime = Runtime(FakeAgent())
            if command != "ADD":
                runtime.call("ADD", conf(version))
            seen.append((runtime.try_call(command, given), runtime.agent.requests))
        assert seen[0] == seen[1]


@pytest.mark.parametrize("place", EVERY, ids=lambda place: ".".join(map(str, place)))
def test_an_add_with_null_succeeds_where_nothing_is_missing(place: Place) -> None:
    """All that SPEC.md lets be absent may be null; what may not is named as missing."""
    status, answer = Runtime(FakeAgent()).try_call("ADD", nulled(place, "1.0.0"))
    assert (status == 200) != needed(place), answer


@pytest.mark.parametrize("key", ["searches", "servers", "options"])
def test_a_pods_resolver_may_lack_anything(key: str) -> None:
    """Containerd's CRI writes null for each list of a pod's dns_config that was not set."""
    dns: dict[str, Any] = {"servers": ["192.0.2.54"], "searches": ["c.example"], "options": ["ndots:3"]}
    answer = Runtime(FakeAgent()).call("ADD", conf(runtimeConfig={"dns": dns | {key: None}}))
    names = {"searches": "search", "servers": "nameservers"}
    assert answer["dns"] == {names.get(k, k): v for k, v in dns.items() if k != key}


def test_null_all_over() -> None:
    """Every value null at once is an ordinary call without anything."""
    runtime = Runtime(FakeAgent())
    runtime.call("ADD", conf() | dict.fromkeys(WHOLE))
    assert json.dumps([e.id for e in runtime.agent.attached.values()]) == '["web"]'
