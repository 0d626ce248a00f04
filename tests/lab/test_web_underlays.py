"""`linkspan web` in Chromium, at labs that have routers with BGP or OpenFlow switches."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import pytest

from support.lab.cluster_runs import ClusterRun
from support.polling import until
from support.web import chromium
from support.web.chromium import Browser

BIRD = pytest.mark.skipif(
    shutil.which("bird", path="/usr/sbin:/usr/bin") is None, reason="needs bird: apt install bird2"
)
SWITCHES = pytest.mark.skipif(
    shutil.which("ovs-ofctl") is None, reason="needs Open vSwitch: apt install openvswitch-switch"
)
PATH = "return document.querySelector('.canvas')._cyreg.cy.edges('[hop = \"there\"]').map((one) => one.target().id())"
NODES = "return document.querySelector('.canvas')?._cyreg?.cy.nodes(arguments[0]).map((one) => one.id()) ?? []"


@contextlib.contextmanager
def shown(words: str) -> Iterator[tuple[ClusterRun, Browser]]:
    """Give a lab of two hosts, and its page."""
    lab = ClusterRun()
    try:
        lab.run("up", f"--hosts 2 {words}")
        with (
            chromium.namespace(f"{lab.name}-view") as place,
            chromium.page_process(place, "--lab", lab.name) as link,
            chromium.browser(place) as page,
        ):
            page.size(1440, 900)
            page.driver.get(link())
            page.shows("c2", ".list")
            yield lab, page
    finally:
        lab.run("down")


@BIRD
def test_a_router_s_session_is_in_the_graph_and_explained() -> None:
    """While it is up, and in red with the reason while its router is dead, or cut off."""
    with shown("--backend bgp --segments 2 --routers bird") as (lab, page):
        page.row("c1")
        page.row("c2")
        page.shows("Reachable", ".verdict")
        page.shows("learnt by BGP from r1", ".hops")
        page.view("bgp")
        page.shows("established", ".list")
        until(lambda: page.run(NODES, "[kind = 'router'][level = 'ok']") == ["b:r1"], "the graph has the router")
        page.row("r1")
        page.shows("It is up.", ".details")
        for failure in ("router-kill", "link-down"):
            lab.run("break", f"r1 {failure}")
            until(lambda: page.run(NODES, "[kind = 'router'][level = 'bad']") == ["b:r1"], "the router is red")
            page.click(".details .actions .quiet")
            page.shows("192.0.2.254", ".details .verdict.bad")
            lab.run("mend", "r1")
            until(lambda: page.run(NODES, "[kind = 'router'][level = 'ok']") == ["b:r1"], "the session is up again")


@SWITCHES
def test_two_clicks_show_the_switches_on_the_way_and_why_there_is_none() -> None:
    """Of the switches the controller answers; flows that are gone come back, and without a switch nothing passes."""
    with shown("--backend sdn") as (lab, page):
        page.row("c1")
        page.row("c2")
        page.shows("Reachable", ".verdict")
        page.shows("switch", ".hops")
        until(lambda: set(page.run(PATH)) >= {"k:h1", "k:h2"}, "the graph has both kernels in the path")
        assert page.run(NODES, "[kind = 'outside']")
        lab.run("break", "sw1 flows-flush")
        page.click(".ways button.strong")
        page.shows("seen", ".hops")
        page.shows("Reachable", ".verdict")
        for failure, verdict, why in (
            ("ctl1 controller-kill", "Unknown", "the controller of the switches did not report its part of the path"),
            ("sw1 switch-kill", "Broken", "Connection refused"),
        ):
            lab.run("break", failure)
            page.click(".trace header button:nth-of-type(2)")
            page.shows(verdict, ".verdict")
            page.shows(why, ".verdict")
            lab.run("mend", failure.partition(" ")[0])
        page.shows("Reachable", ".verdict")
