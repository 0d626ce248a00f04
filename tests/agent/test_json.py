"""JSON output: commands print with -o json what docs/json.md says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.agent.agent_host import Host, World
from support.json_page import documented


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """Return a host with an agent, two networks and a container."""
    world = World()
    made = Host(world)
    made.start()
    try:
        made.network("demo", "10.201.0.0/24")
        made.network("other", "10.202.0.0/24")
        made.attach(world.namespace(), name="web")
        (made.folder / "web.yaml").write_text(POLICY)
        yield made
    finally:
        made.close()
        world.remove()


POLICY = """
policy: web
ingress: [{from: [outside]}]
tests: [{from: outside, to: web, expect: allow}]
"""
FILE = "web.yaml"
"""In place of a file with the policy."""

COMMANDS = {
    "network create": ("third", "--pool", "10.203.0.0/24"),
    "network show": ("demo",),
    "network update": ("other", "--mtu", "1400"),
    "network list": (),
    "network allow": ("demo", "other"),
    "network disallow": ("demo", "other"),
    "endpoint list": (),
    "endpoint show": ("web",),
    "endpoint label": ("web", "app=web"),
    "policy diff": (FILE,),
    "policy test": (FILE,),
    "policy apply": (FILE,),
    "policy staged": (),
    "policy list": (),
    "policy show": ("web",),
    "policy can": ("outside", "web"),
    "policy who-can": ("web",),
    "policy delete": ("web",),
    "address list": (),
    "address show": ("10.201.0.9",),
    "address reserve": ("demo", "10.201.0.67/28"),
    "address unreserve": ("demo", "10.201.0.64/28"),
    "address check": (),
    "host list": (),
    "cluster set": ("--reclaim-after", "600"),
    "cluster show": (),
    "cluster finalize": (),
    "status": (),
    "diff": (),
    "plan": (),
    "trace": ("host:", "web"),
    "detach": ("--id", "nobody"),
    "version": (),
}


def test_the_page_names_every_field(host: Host) -> None:
    """Of what each command really prints, in this order, no field is missing on the page, and none is invented."""
    page = documented()
    for command, words in COMMANDS.items():
        is_list, fields = page[command]
        words = tuple(str(host.folder / FILE) if word == FILE else word for word in words)
        told: Any = host.json(*command.split(), *words, code=3 if command == "policy diff" else 0)
        assert isinstance(told, list) == is_list, command
        assert set(told[0] if is_list else told) == fields, command
