"""`linkspan web` in Chromium: the way by each backend, and after each fault of a host why there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from support.lab.cluster_runs import ClusterRun
from support.polling import until
from support.web import chromium
from support.web.chromium import Browser

pytestmark = pytest.mark.skipif(
    shutil.which("swanctl", path="/usr/sbin:/usr/bin") is None, reason="needs strongSwan"
)

BACKENDS = {
    "vxlan": "encapsulated", "ipip": "encapsulated", "host-gw": "routed", "bgp": "learnt", "wireguard": "encrypted",
}  # fmt: skip
"""Backends of networks beside the lab's own, which is ipsec's: what the hops say of a packet between hosts."""
PATH = "return document.querySelector('.canvas')._cyreg.cy.edges('[hop = \"there\"]').map((one) => one.target().id())"
"""The nodes of the drawn path, without the first one."""


@pytest.fixture(scope="module")
def lab() -> Iterator[ClusterRun]:
    """Give a lab of three hosts with a network of each backend, and in each a container on h1 and one on h3."""
    found = ClusterRun()
    try:
        found.run("up", "--backend ipsec --store etcd")
        for number, backend in enumerate(BACKENDS):
            wish = {"name": backend, "pools": [f"10.{100 + number}.0.0/16"], "backend": backend}
            found.call("h1", "POST", "/v1/networks", wish)
        for backend in BACKENDS:
            found.joined(backend)
            for name, host in ends(backend).items():
                found.run("attach", f"{host} {name} --network {backend}")
        yield found
    finally:
        found.run("down")


@pytest.fixture(scope="module")
def page(lab: ClusterRun) -> Iterator[Browser]:
    """Give a browser that has opened the page of h1's agent."""
    with (
        chromium.namespace(f"{lab.name}-view") as place,
        chromium.page_process(place, "--lab", lab.name) as link,
        chromium.browser(place) as found,
    ):
        found.size(1440, 900)
        found.driver.get(link())
        found.shows("c3", ".list")
        yield found


FAMILIES = {
    "vxlan": ("eth0",),
    "bgp": ("eth0", "the BGP session with h3 is down"),
    "ipsec": ("eth0", "no IPsec association is up"),
}
"""A tunnel, routes that hosts learn, and keys that they agree on: what each says of a host that is cut off.

At first all name the link, as far as h1 knows it; the last two also have something that ends after a while."""


def ends(backend: str) -> dict[str, str]:
    """Return the hosts of the two containers in a network, by their names."""
    return {"c1": "h1", "c3": "h3"} if backend == "ipsec" else {f"{backend}-1": "h1", f"{backend}-3": "h3"}


def two_clicks(page: Browser, backend: str) -> None:
    """Choose both ends of a network, with nothing left of the last trace."""
    page.run("location.hash = '#/containers'")
    until(lambda: page.find(".panel") is None, "no panel is open")
    for name in ends(backend):
        page.row(name)


def traced(page: Browser, backend: str, verdict: str, *reasons: str) -> None:
    """Trace between the ends of a network until there is this verdict, with one of the reasons."""
    two_clicks(page, backend)
    page.shows(verdict, ".verdict")

    def said() -> bool:
        return any(one in page.text(".verdict") for one in reasons or (verdict,))

    until(said, f"the verdict has one of {reasons}")


def mended(lab: ClusterRun) -> None:
    """Mend h3, and wait until h1 reaches it again."""
    lab.run("mend", "h3")

    def reached() -> bool:
        status = lab.status("h1")
        return not status["unreachable"] and not status["bgp"]["down"]

    until(reached, "h1 reaches its peers again")


@pytest.mark.parametrize("backend", [*BACKENDS, "ipsec"])
def test_two_clicks_show_the_way_of_each_backend(page: Browser, backend: str) -> None:
    """From container to container, through both kernels, on the graph and in the list."""
    traced(page, backend, "Reachable")
    page.shows({**BACKENDS, "ipsec": "encrypted"}[backend], ".hops")
    until(lambda: page.run(PATH)[:2] == ["k:h1", "k:h3"], "the graph has both kernels in the path")
    assert page.run(PATH)[-1].startswith("c:")


@pytest.mark.parametrize("failure", ["link-down", "partition:h1"])
def test_a_host_that_is_cut_off_is_the_broken_hop(page: Browser, lab: ClusterRun, failure: str) -> None:
    """In red, with the reason, by each family of backends; once it is mended, the same two clicks show the way."""
    lab.run("break", f"h3 {failure}")
    try:
        for backend, reasons in FAMILIES.items():
            traced(page, backend, "Broken", *reasons)
            until(lambda: page.find(".hops li.broken .reason"), "the hop is marked")
    finally:
        mended(lab)
    page.shows("Reachable", ".verdict")


def test_an_agent_that_is_gone_says_nothing_and_a_real_packet_decides(page: Browser, lab: ClusterRun) -> None:
    """It passes as long as the kernel has what the agent made."""
    try:
        for failure, backend, live in (("agent-kill", "vxlan", "Reachable"), ("routes-flush", "bgp", "Broken")):
            lab.run("break", f"h3 {failure}")
            traced(page, backend, "Unknown", "did not report its part of the path")
            page.click(".ways button.strong:enabled")  # it traces again once h3 is known to be silent
            page.shows(live, ".trace")  # also if something changes meanwhile, so that the verdict is another one
    finally:
        mended(lab)


@pytest.mark.parametrize(
    ("failure", "kind", "backend"),
    [
        ("rules-flush", "Nft", "ipsec"),
        ("routes-flush", "Route", "bgp"),
        ("fdb-flush", "FdbEntry", "vxlan"),
        ("helper-kill", "Process", "ipsec"),
    ],
)
def test_a_fault_that_is_repaired_is_told(
    page: Browser, lab: ClusterRun, failure: str, kind: str, backend: str
) -> None:
    """Among the host's last repairs, and the trace of whom it concerns is as it was."""
    lab.run("break", f"h1 {failure}")
    page.run("location.hash = '#/hosts?sel=h:h1'")
    page.shows(kind, ".details")
    traced(page, backend, "Reachable")


def test_a_host_that_has_rebooted_is_where_it_was(page: Browser, lab: ClusterRun) -> None:
    """Its containers are reached again by each family, and nothing in the graph has moved."""
    places = (
        "const all = document.querySelector('.canvas')._cyreg.cy.nodes('[kind = \"host\"]');"
        "return Object.fromEntries(all.map((one) => [one.id(), one.position()]))"
    )
    before = page.run(places)
    assert set(before) == {"h:h1", "h:h2", "h:h3"}
    lab.run("break", "h3 reboot")
    for backend in FAMILIES:
        traced(page, backend, "Reachable")
    assert page.run(places) == before
