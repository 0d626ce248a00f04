"""Complete lists: help, README.md and the pages' tables name everything that the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from linkspan.backends import BACKENDS, CROSSING
from linkspan.cli.main import commands
from linkspan.core.errors import Invalid
from linkspan.lab import controllers, faults, routers, switches, topology

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _option(command: str, name: str) -> str:
    """Return the help of a command's option."""
    found = commands()
    for word in command.split():
        found = found.commands[word]
    return next(str(option.help) for option in found.params if name in option.opts)


@pytest.mark.parametrize(
    ("command", "known"),
    [
        ("network create", tuple(BACKENDS)),
        ("network migrate", CROSSING),
        ("lab up", ("bridge", *CROSSING)),
        ("demo", ("bridge", *CROSSING)),
    ],
)
def test_help_names_every_backend(command: str, known: tuple[str, ...]) -> None:
    """All that the command takes."""
    words = set(re.findall(r"[a-z][a-z-]+", _option(command, "--backend")))
    assert set(known) <= words


def test_there_is_a_tour_of_every_backend() -> None:
    """README names them all."""
    assert all(BACKENDS[name].summary for name in CROSSING)
    (line,) = (line for line in README.splitlines() if "scripts/demo --backend" in line)
    assert set(CROSSING) <= set(re.findall(r"[a-z][a-z-]+", line))


def test_every_page_is_in_the_index() -> None:
    """README's table links each page of docs/, and no page that there is not."""
    linked = set(re.findall(r"\(docs/([\w-]+\.md)", README))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("page", ["lab.md", "settings.md"])
def test_a_table_of_options_names_every_backend(page: str) -> None:
    """The row of --backend has all."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith("| `--backend B`"))
    assert set(CROSSING) <= set(re.findall(r"[a-z][a-z-]+", row))


def test_the_labs_page_has_every_failure() -> None:
    """Of hosts, routers, switches and controllers, in its tables."""
    rows = [line for line in (ROOT / "docs" / "lab.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    told = set(re.findall(r"`([a-z]+(?:-[a-z]+)?(?::[A-Z]+)?)`", "\n".join(rows)))
    hosts = {*faults.FAILURES, "partition:HOST"}
    assert hosts | {*routers.FAILURES, *switches.FAILURES, *controllers.FAILURES} <= told


@pytest.mark.parametrize(
    ("backend", "failure", "said"),
    [
        ("vxlan", "flows-flush", "it is a switch's, and this lab has none: linkspan lab up --backend sdn"),
        ("sdn", "flows-flush", "it is a switch's: linkspan lab break sw1 flows-flush"),
        ("sdn", "controller-kill", "it is a controller's: linkspan lab break ctl1 controller-kill"),
        ("bgp", "router-kill", "it is a router's, and this lab has none: linkspan lab up --routers bird"),
        ("sdn", "link-down:sw2", "it is a switch's: linkspan lab break sw1 link-down:sw2"),
        ("bgp", "fire", "the known ones are agent-kill, link-down"),
    ],
)
def test_a_failure_that_hosts_have_not_is_refused_with_whose_it_is(backend: str, failure: str, said: str) -> None:
    """The hint names an object of this lab that has this failure, if there is one."""
    lab = topology.planned(topology.Wishes(backend=backend))
    with pytest.raises(Invalid, match=f"a host has no failure '{failure}'") as refused:
        faults.do(lab, lab.host("h1"), failure)
    assert said in refused.value.hint
