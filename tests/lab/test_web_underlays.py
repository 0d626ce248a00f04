"""`linkspan web` in Chromium, at labs that have routers with BGP, OpenFlow switches or certificates."""

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
STRONGSWAN = pytest.mark.skipif(
    shutil.which("swanctl", path="/usr/sbin:/usr/bin") is None, reason="needs strongSwan"
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
    """While it is up, and in red with the reason after its router died."""
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
        lab.run("break", "r1 router-kill")
        until(lambda: page.run(NODES, "[kind = 'router'][level = 'bad']") == ["b:r1"], "the router is red")
        page.click(".details .actions .quiet")
        page.shows("192.0.2.254", ".details .verdict.bad")


@pytest.mark.parametrize(
    ("backend", "hops", "outside"),
    [
        pytest.param("sdn", "switch", True, marks=SWITCHES),
        pytest.param("ipsec", "encrypted", False, marks=STRONGSWAN),
    ],
)
def test_two_clicks_show_the_way_of_a_backend_with_a_lab_of_its_own(backend: str, hops: str, outside: bool) -> None:
    """With the switches on the way, of which the controller answers; or encrypted between both kernels."""
    with shown(f"--backend {backend}") as (_, page):
        page.row("c1")
        page.row("c2")
        page.shows("Reachable", ".verdict")
        page.shows(hops, ".hops")
        until(lambda: set(page.run(PATH)) >= {"k:h1", "k:h2"}, "the graph has both kernels in the path")
        assert bool(page.run(NODES, "[kind = 'outside']")) == outside
