"""Endpoints by their container's namespace: an attach looks at no other container's."""

from __future__ import annotations

from pathlib import Path

import msgspec

from linkspan.core.model import Endpoint
from linkspan.store.memory import Memory
from support.memory_machine import registry_of
from support.records.registry_stage import NotedMachine
from support.records.replicas import Member

WEB = Endpoint(id="web", ifname="eth0", network="demo", netns=10, netns_cookie=1)
MORE = Endpoint(id="web", ifname="eth1", network="more", netns=10, netns_cookie=1)
HERE = Endpoint(id="here", ifname="eth0", network="host")


def test_each_change_of_an_endpoint_is_followed(tmp_path: Path) -> None:
    """It is found where it is now, whether it came, moved or went; the host's own namespace has nobody's."""
    member = Member(Memory(), tmp_path, "h1")
    member.endpoints[WEB.identity] = WEB
    registry = registry_of(member, tmp_path, NotedMachine())
    registry.admit(MORE, 0)
    registry.admit(HERE, 0)
    assert (registry.within(10), registry.within(0)) == ([WEB, MORE], [])
    moved = msgspec.structs.replace(MORE, netns=11, netns_cookie=2)
    registry.admit(moved, 0)
    assert (registry.within(10), registry.within(11)) == ([WEB], [moved])
    registry.drop(WEB.identity)
    registry.drop(WEB.identity)
    assert (registry.within(10), registry.within(11)) == ([], [moved])
