"""`linkspan web` in Chromium, at an agent that is its answers only: what the page does when they change."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest

from linkspan.web.shared_answers import KEEP
from support.lab.lab_runs import LabRun
from support.polling import until
from support.web import chromium
from support.web.answers import FakeAgent
from support.web.chromium import Browser, Keys

PAIR = "#/containers?a=c:c1/eth0&b=c:c2/eth0"
SESSION = {"peer": "tor", "remote_as": 64512, "address": "192.0.2.9", "why": ""}
ROUTER = {"peer": "tor", "address": "192.0.2.9", "as": 64512}


class Shown:
    """The agent, and the browser that shows its page."""

    def __init__(self, agent: FakeAgent, loop: asyncio.AbstractEventLoop, page: Browser) -> None:
        self.agent, self.page, self._loop = agent, page, loop
        self._first = copy.deepcopy(agent.answers.status)

    def tells(self, what: str, **status: Any) -> None:
        """Change the agent's status, and have the page's server read it."""
        self.agent.answers.status.update(status)
        event = self.agent.tell(at=time.time(), type="peer", what=what)
        asyncio.run_coroutine_threadsafe(event, self._loop).result(10)

    def asks_anew(self) -> None:
        """Wait until the page's server gives nobody an answer any more that it has now."""
        end = time.monotonic() + KEEP
        until(lambda: time.monotonic() > end, "answers that are shared have ended")

    def reset(self) -> None:
        """Return to the table of containers, and then to the first answers: an open trace would ask for one without."""
        self.page.run("location.hash = '#/containers'")
        until(lambda: not self.page.find(".trace"), "no trace is open")
        self.agent.more.clear()
        self.agent.refused.clear()
        self.tells("all is well", **copy.deepcopy(self._first))
        self.page.shows("all well", ".bar")

    def cuts(self) -> None:
        """Tell that h2 is cut off."""
        why = "no host answers at 192.0.2.2 for 200 s; check the link and the rules of the underlay between both hosts"
        self.tells("h2 is cut off", ok=False, unreachable=[{"host": "h2", "network": "demo", "why": why}])
        self.page.shows("1 problem", ".bar")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Give the page, opened."""
    agent = FakeAgent(tmp_path_factory.mktemp("agent") / "agent.sock")
    agent.answers.status["bgp"]["routers"] = [{**ROUTER, "state": "established"}]
    with (
        agent.in_thread() as loop,
        chromium.namespace(f"{LabRun().name}-view") as place,
        chromium.page_process(place, "--socket", str(agent.path)) as link,
        chromium.browser(place) as page,
    ):
        page.size(1440, 900)
        page.driver.get(link())
        page.shows("c2", ".list")
        until(lambda: agent.streams, "the page's server follows the events")
        yield Shown(agent, loop, page)


@pytest.fixture
def shown(opened: Shown) -> Shown:
    """Give the page as it was at first."""
    opened.reset()
    return opened


def traced(verdict: str, **more: Any) -> dict[str, Any]:
    """Return a trace of one hop."""
    hop = {
        "host": "h1", "namespace": "host", "device": "eth0", "port": "", "action": "sent", "detail": "", "headers": [],
        "mtu": 1450, "seen": None,
    }  # fmt: skip
    return {
        "verdict": verdict, "path_mtu": 1450, "hops": [hop], "reply_hops": [], "broken_at": "h1 eth0",
        "reason": "", "unknown": [], "listens": None, **more,
    }  # fmt: skip


def test_a_real_packets_verdict_gives_way_when_problems_change(shown: Shown) -> None:
    """To that of another trace; what the packet met stays beside it, with its age."""
    page = shown.page
    shown.agent.more["trace"] = traced("reachable")
    page.run("location.hash = arguments[0]", PAIR)
    page.shows("Reachable", ".verdict")
    page.click(".ways button.strong:enabled")
    page.shows("The last real packet", ".trace")
    shown.asks_anew()
    shown.agent.more["trace"] = traced("broken", reason="the link is down")
    shown.cuts()
    page.shows("the link is down", ".verdict")
    page.shows("Reachable", ".packet")
    page.shows("ago", ".packet")


def test_two_clicks_in_a_row_are_two(shown: Shown) -> None:
    """A page that is busy need not have drawn the first one when the second one comes."""
    shown.agent.more["trace"] = traced("reachable")
    shown.page.shows("c2", ".list")
    shown.page.run("document.querySelectorAll('button.row').forEach((one) => one.click())")
    until(lambda: shown.page.text(".trace h2").split() == ["c1", "→", "c2"], "the trace is from c1 to c2")


def test_a_port_without_a_listener_is_in_the_verdict(shown: Shown) -> None:
    """The verdict is no good one then, though packets arrive."""
    shown.agent.more["trace"] = traced("reachable", listens=False)
    shown.page.run("location.hash = arguments[0]", f"{PAIR}&port=80/tcp")
    shown.page.shows("nothing listens on port 80/tcp", ".verdict.warn")


def test_reasons_are_in_the_pages_language(shown: Shown) -> None:
    """Those that the server knows; they change with the language, without another click."""
    page = shown.page
    shown.agent.more["trace"] = traced("broken", reason="link eth0 in host is down")
    page.run("location.hash = arguments[0]", PAIR)
    page.shows("link eth0 in host is down", ".verdict")
    try:
        page.language("zh")
        page.shows("处于 down 状态", ".verdict")
    finally:
        page.language("en")
    page.shows("link eth0 in host is down", ".verdict")


def test_a_real_packets_verdict_gives_way_when_the_language_changes(shown: Shown) -> None:
    """To that of another trace, whose reason is in this language; no other packet is sent for it."""
    page = shown.page
    shown.agent.more["trace"] = traced("broken", reason="link eth0 in host is down")
    page.run("location.hash = arguments[0]", PAIR)
    page.shows("link eth0 in host is down", ".verdict")
    page.click(".ways button.strong:enabled")
    page.shows("The last real packet", ".trace")
    sent = sum(one.startswith("POST") for one in shown.agent.asked)
    try:
        page.language("zh")
        page.shows("处于 down 状态", ".verdict")
    finally:
        page.language("en")
    assert sum(one.startswith("POST") for one in shown.agent.asked) == sent


def test_why_the_agent_waits_is_in_the_pages_language(shown: Shown) -> None:
    """A pointer on the bar's badge shows it."""
    page, title = shown.page, "return document.querySelector('.condition [title]')?.title ?? ''"
    shown.tells("it waits", ok=False, waiting="it has no records yet, and attaches nothing until its store answers")
    try:
        page.language("zh")
        until(lambda: page.run(title).startswith("它还没有任何记录"), "the reason is in Chinese")
    finally:
        page.language("en")
        shown.tells("it waits no more", waiting="")


def test_bgp_sessions_follow_the_live_state(shown: Shown) -> None:
    """The table's, and the chosen one's."""
    page, more = shown.page, shown.agent.more
    told = {"local_as": 64513, "source": "", "since": 0, "sent": 1, "received": 1, "accepted": 1, "seen": {}, "fix": ""}

    def answers(state: str, why: str) -> None:
        one = {**SESSION, "state": state, "why": why}
        more.update({"bgp/peers": [one], "bgp/explain/tor": {**told, **one}})

    answers("established", "")
    page.run("location.hash = '#/bgp?sel=b:tor'")
    page.shows("established", ".list")
    page.shows("It is up.", ".details")
    shown.asks_anew()
    answers("idle", "the router is dead")
    down = [{"peer": "tor", "mesh": False, "state": "idle", "why": "dead", "fix": ""}]
    shown.tells("tor is down", bgp={"down": down, "routers": [{**ROUTER, "state": "idle"}]})
    page.shows("idle", ".list")
    page.shows("the router is dead", ".details")


def test_the_list_of_problems_is_in_the_window_and_closes(shown: Shown) -> None:
    """At a phone's width, too; Escape, a press elsewhere and another view close it. What ticks is not announced."""
    page = shown.page
    shown.cuts()
    is_open = "return document.querySelector('.problems').open"

    def closed_by(what: str) -> None:
        until(lambda: not page.run(is_open), f"{what} closes the list")

    try:
        for width in (360, 600, 1440):
            page.size(width, 900)
            page.click(".problems summary")
            box = page.run("return document.querySelector('.problems ul').getBoundingClientRect().toJSON()")
            assert box["left"] >= 0, width
            assert box["right"] <= width, width
            page.press(Keys.ESCAPE)
            closed_by("Escape")
        page.click(".problems summary")
        page.mouse(700, 880)
        closed_by("a press elsewhere")
        page.click(".problems summary")
        page.view("hosts")
        closed_by("another view")
        assert page.run("return document.querySelector('.bar [role=status]').textContent") == "1 problem"
    finally:
        page.size(1440, 900)


def test_a_host_that_is_cut_off_is_so_everywhere(shown: Shown) -> None:
    """Also while some of the last minute's pings were answered."""
    path = {"host": "h1", "peer": "h2", "network": "demo", "address": "", "round_trip": 0.00011, "loss": 0.38}
    shown.agent.more["paths"] = {"hosts": ["h1", "h2"], "silent": [], "paths": [path]}
    shown.cuts()
    shown.page.view("peers")
    shown.page.shows("cut off", ".matrix td.bad b")
    assert "0.11 ms" not in shown.page.text(".matrix")
    assert "alive" not in shown.page.text(".matrix tr:last-child th")
    shown.page.run("location.hash = '#/hosts?sel=l:h1 h2'")
    shown.page.shows("38 % lost", ".details")
    assert "0.11 ms" not in shown.page.text(".details")


def test_a_question_without_an_answer_is_asked_again(shown: Shown) -> None:
    """By itself: the agent may be back."""
    shown.agent.more["doctor"] = [{"check": "kernel", "status": "ok", "detail": "veth is there", "fix": ""}]
    shown.agent.refused.add("doctor")
    shown.page.view("doctor")
    shown.page.shows("no store", ".list")
    shown.agent.refused.clear()
    shown.page.shows("veth is there", ".list")
    assert "no store" not in shown.page.text(".list")
