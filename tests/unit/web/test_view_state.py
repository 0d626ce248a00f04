"""State of the page: an agent's answers, and differences of two states."""

from __future__ import annotations

from typing import Any

import pytest

from linkspan.web import view_state
from linkspan.web.view_state import State, away, difference, view
from support.web.answers import answers, endpoint

FULL = {"peer": "r1", "why": "it announces more", "fix": "ask it"}


def applied(state: State, change: dict[str, view_state.SectionChange]) -> dict[str, dict[str, Any]]:
    """Do what the page does with a change."""
    after = {name: dict(items) for name, items in state.items()}
    for name, one in change.items():
        after[name].update(one.put)
        for key in one.drop:
            del after[name][key]
    return after


def test_a_state_has_what_the_agent_answers() -> None:
    """Hosts with their blocks and how full they are, networks, containers."""
    found = view(answers(endpoint("c1", "h1"), endpoint("c2", "h1"), endpoint("c3", "h2")), {"lab": ""})
    assert {one["name"]: one["containers"] for one in found["hosts"].values()} == {"h1": 2, "h2": 1}
    assert found["hosts"]["id-h1"]["leases"][0]["used"] == 2
    assert found["networks"]["demo"]["containers"] == 3
    assert set(found["containers"]) == {"c1/eth0", "c2/eth0", "c3/eth0"}
    assert found["about"]["here"] == "h1"
    assert found["about"]["total"] == 3


def test_a_living_host_does_not_change_all_the_time() -> None:
    """The moment at which it was last seen would be a change a second."""
    first, second = answers(), answers()
    second.hosts[1]["last_seen"] += 5
    assert difference(view(first, {}), view(second, {})) == {}


def test_problems_are_told_with_host_and_network() -> None:
    """All kinds that a status has."""
    told = answers()
    told.status["unreachable"] = [{"host": "h2", "network": "demo", "why": "no answer"}]
    told.status["drift"] = ["route is missing"]
    told.status["store"] = {"ok": False, "state": "away", "problem": "store does not answer", "fix": "look at it"}
    first, *rest = view(told, {})["problems"].values()
    assert (first["host"], first["network"], first["why"]) == ("h2", "demo", "no answer")
    whys = [one["why"] for one in rest]
    assert whys == ["cannot repair: route is missing", "store: does not answer; look at it"]


def test_problems_are_told_in_every_language() -> None:
    """All viewers get the same state, and each page takes its own."""
    told = answers()
    told.status["unreachable"] = [{"host": "h2", "network": "", "why": "its agent has been silent for a while"}]
    (found,) = view(told, {})["problems"].values()
    assert found["said"] == {"zh": "它的 agent 已有一段时间没有消息"}


@pytest.mark.parametrize(
    ("status", "host", "why"),
    [
        ({"orphans": [{"what": "container c1", "removed_in": 9.0}]}, "", "container c1 is an orphan"),
        ({"bgp": {"down": [], "limited": [FULL]}}, "", "BGP peer r1: it announces more; ask it"),
        ({"namesakes": [{"name": "h1", "ids": ["a", "b"]}], "ok": True}, "h1", "2 hosts have the name h1: ids a, b"),
        ({"something new": ["x"]}, "", "`linkspan status` shows what is wrong"),
    ],
)
def test_a_status_that_is_not_ok_has_a_problem(status: dict[str, Any], host: str, why: str) -> None:
    """So the page never says that all is well when `linkspan status` does not."""
    told = answers()
    told.status.update({"ok": False, **status})
    (problem,) = view(told, {})["problems"].values()
    assert problem["host"] == host
    assert problem["why"].startswith(why)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((), ("c1",)),
        (("c1", "c2"), ("c2",)),
        (("c1", "c2"), ("c2", "c3")),
        (("c1",), ("c1",)),
    ],
)
def test_a_change_leads_from_one_state_to_the_other(before: tuple[str, ...], after: tuple[str, ...]) -> None:
    """And has nothing of what stayed the same."""
    first, second = (view(answers(*(endpoint(name, "h1") for name in names)), {}) for names in (before, after))
    change = difference(first, second)
    assert applied(first, change) == second
    assert set(change) == ({"containers", "hosts", "networks", "about"} if len(before) != len(after) else
        {"containers"} if before != after else set())  # fmt: skip


def test_an_agent_that_is_away_keeps_the_picture() -> None:
    """Only the page's bar says so."""
    before = view(answers(endpoint("c1", "h1")), {})
    change = difference(before, away(before, "it sleeps"))
    assert set(change) == {"about"}
    assert change["about"].put == {"away": "it sleeps", "ok": False, "said": {"zh": "it sleeps"}}


def test_why_an_agent_is_away_or_waits_is_told_in_every_language() -> None:
    """As a problem."""
    told = answers()
    told.status["waiting"] = "it has no records yet, and attaches nothing until its store answers"
    waits = view(told, {})
    assert waits["about"]["said"]["zh"].startswith("它还没有任何记录")
    assert away(waits, "agent at /run/a.sock has ended")["about"]["said"] == {"zh": "/run/a.sock 上的 agent 已结束"}
    assert view_state.unknown({}, "the agent has not answered yet")["about"]["said"] == {"zh": "agent 还没有应答"}


def test_a_large_cluster_has_numbers_instead_of_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page asks for lists in parts."""
    monkeypatch.setattr(view_state, "MOST", 2)
    found = view(answers(*(endpoint(f"c{n}", "h1") for n in range(3))), {})
    assert found["containers"] == {}
    assert not found["about"]["complete"]
    assert found["about"]["total"] == 3


def test_a_session_that_is_down_is_told_at_its_host() -> None:
    """With a host of the mesh; a router is no host of the cluster, so it is told at the asked one."""
    told = answers()
    routers = [{"peer": "tor", "address": "192.0.2.254", "as": 64512, "state": "active"}]
    down = [{"peer": "h2", "mesh": True, "why": "refused"}, {"peer": "tor", "mesh": False, "why": "silent"}]
    told.status["bgp"] = {"routers": routers, "down": down}
    found = view(told, {})
    assert [one["host"] for one in found["problems"].values()] == ["h2", ""]
    assert found["routers"] == {"tor": routers[0]}
