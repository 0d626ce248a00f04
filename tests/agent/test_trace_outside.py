"""Traces that lead out of the cluster: only a packet that is answered proves anything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.agent.agent_host import Host, World, first_ip

HERE, THERE, NOBODY = "198.51.100.1", "198.51.100.2", "203.0.113.9"
NOT_KNOWN = "unknown whether it is reachable; packets may pass nevertheless:"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """Return a host with an uplink, a network, and a container that publishes a port and has an alias."""
    world = World()
    made = Host(world)
    made.outside()
    made.start()
    try:
        made.network()
        port = {"host_ip": "", "host_port": 8080, "port": 80, "protocol": "tcp"}
        made.attach(world.namespace(), name="shop-web-1", ports=[port], labels={"aliases": "web"})
        yield made
    finally:
        made.close()
        world.remove()


def test_an_outside_that_answers_is_reachable(host: Host) -> None:
    """Without being asked to, root's trace sends one packet; the words are as they always were."""
    said = host.cli("trace", "shop-web-1", THERE)
    assert "reachable, with packets of up to 1500 bytes" in said
    assert "note:" not in said


def test_an_outside_that_does_not_answer_is_not_known(host: Host) -> None:
    """A packet was seen to leave, and that is all: neither reachable nor broken, with exit code 3."""
    said = host.cli("trace", "shop-web-1", NOBODY, code=3)
    assert NOT_KNOWN in said
    assert "uplink: beyond uplink of host" in said
    assert f"nobody was asked: {NOBODY} is on no host of linkspan's; a packet left there, and no answer came" in said


def test_who_comes_from_outside_is_not_known(host: Host) -> None:
    """No packet can be sent from there: the hops on this host are ok, and the rest is not known."""
    (endpoint,) = host.json("endpoint", "list")
    for target, port in ((HERE, "8080/tcp"), (first_ip(endpoint), "80/tcp")):
        said = host.cli("trace", THERE, target, "--port", port, code=3)
        assert NOT_KNOWN in said
        assert f"nobody was asked: {THERE} is on no host of linkspan's" in said
        assert "the packet has arrived" in said
    found = host.json("trace", NOBODY, first_ip(endpoint), code=3)
    assert (found["verdict"], found["reachable"]) == ("unknown", False)
    assert [one["beyond"] for one in found["unknown"]] == [True]


@pytest.mark.parametrize("name", ["web", "web.demo", "web.demo.internal"])
def test_names_that_dns_answers_are_traced(host: Host, name: str) -> None:
    """As a container's own name is."""
    assert host.json("trace", "host:", name)["hops"][-1]["namespace"] == "shop-web-1"
