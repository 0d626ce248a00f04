"""JSON output: commands print with -o json what docs/json.md says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.agent.agent_host import Host, World

PAGE = Path(__file__).parents[2] / "docs" / "json.md"


def documented() -> dict[str, tuple[bool, set[str]]]:
    """Return, by command, whether it prints a list and the fields that the page names."""
    found: dict[str, tuple[bool, set[str]]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) != 3 or "`" not in cells[0]:
            continue
        commands, what, of = cells
        while of != (outer := re.sub(r"\([^()]*\)", "", of)):  # parentheses stand in parentheses
            of = outer
        of = of.partition(":")[0]
        fields = set(re.findall(r"`(\w+)`", of))
        if reference := re.search(r"as `([\w ]+)`", of):
            fields = (fields | found[reference[1]][1]) - {reference[1]}
        first, *others = re.findall(r"`([\w -]+)`", commands)
        group = first.partition(" ")[0]
        for command in (first, *(o if " " in o else f"{group} {o}" for o in others)):
            found[command] = (what == "a list", fields)
    return found


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
