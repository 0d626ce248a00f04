"""Containers' names in a cluster: on every host, both ways, for as long as they live, and for nobody else."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from linkspan.dns import service
from linkspan.lab import record, sockets
from support.dns_queries import AAAA, NOERROR, NXDOMAIN, PTR, REFUSED, TXT, A, Answer, question, reverse
from support.lab.dns_runs import GATEWAY, GATEWAY6, NamesRun, resolver
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq: apt install dnsmasq-base")

HOSTS = ("h1", "h2", "h3")
NAMED_WITHIN, DEAD_WITHIN = 1.0, 5.0
"""Seconds: the promises of names."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[NamesRun]:
    """Give three hosts with VXLAN, two stacks and a container each, whose names are known everywhere."""
    found = NamesRun()
    try:
        found.run("up", "--backend vxlan --underlay dual --segments 2")
        found.all_known()
        yield found
    finally:
        found.run("down")


def kept(promise: float, measure: Callable[[], float]) -> bool:
    """Return whether a promise is kept by one of three tries: it is of the product, not of a machine out of breath."""
    return any(measure() <= promise * SHARED for _ in range(3))


def seconds(since: float, condition: Callable[[], object], what: str) -> float:
    """Wait for a condition, and return how long that took."""
    until(condition, what)
    return time.monotonic() - since


def test_names_lead_to_addresses_and_back_on_every_host(cluster: NamesRun) -> None:
    """From containers and hosts: bare and whole, in any case, A and AAAA, by UDP and TCP, at both gateways."""
    containers = {c.name: c.attachments[0].addresses for c in record.load(cluster.name).containers}
    for place in ("c1", "c2", "c3", "h1", "h2", "h3"):
        for name, addresses in containers.items():
            four, six = (text.partition("/")[0] for text in addresses)
            assert cluster.ask(place, name) == Answer(NOERROR, [four])
            assert cluster.ask(place, f"{name}.demo", AAAA, GATEWAY6) == Answer(NOERROR, [six])
            assert cluster.ask(place, f"{name}.demo.internal") == Answer(NOERROR, [four])
            assert cluster.ask(place, reverse(four), PTR, GATEWAY6) == Answer(NOERROR, [f"{name}.demo"])
            assert cluster.ask(place, reverse(six), PTR) == Answer(NOERROR, [f"{name}.demo"])
    assert cluster.ask("c1", "C2.Demo.Internal", tcp=True).data == [containers["c2"][0].partition("/")[0]]


def test_what_is_not_there_is_not_asked_outside(cluster: NamesRun) -> None:
    """Bare names, the network's domain and its pools' addresses are known here or nowhere."""
    for name, kind in itertools.product(("nobody", "nobody.demo", "nobody.demo.internal"), (A, TXT)):
        assert cluster.ask("c1", name, kind).code == NXDOMAIN
    for name in ("demo", "demo.internal"):
        assert not cluster.ask("c1", name).data
    assert cluster.ask("c1", reverse("10.244.255.9"), PTR).code == NXDOMAIN


def test_a_name_is_there_within_a_second_and_gone_within_another(cluster: NamesRun) -> None:
    """On another host than the container's, from its attach and from its detach."""

    def comes() -> float:
        with cluster.container("h1", "brief") as made:
            came = seconds(made["at"], lambda: cluster.knows("c3", "brief"), "the name is there")
        return max(came, seconds(time.monotonic(), lambda: not cluster.knows("c3", "brief"), "the name is gone"))

    assert kept(NAMED_WITHIN, comes)


def test_all_who_share_an_alias_are_answered_in_turn(cluster: NamesRun) -> None:
    """Two on two hosts: each comes first at times, and one that goes is answered no longer."""
    with contextlib.ExitStack() as second, cluster.container("h1", "web1", aliases="api, WWW") as one:
        two = second.enter_context(cluster.container("h2", "web2", aliases="api"))
        both = {text.partition("/")[0] for text in (one["addresses"][0], two["addresses"][0])}
        until(lambda: set(cluster.ask("c3", "api").data) == both, "both are answered")
        assert {cluster.ask("c3", "api").data[0] for _ in range(8)} == both
        until(lambda: cluster.knows("c2", "www.demo"), "the other alias")
        second.close()
        until(lambda: len(cluster.ask("c3", "api").data) == 1, "one is gone")
        assert cluster.ask("c3", "web2").code == NXDOMAIN


def test_names_that_are_none_spoil_nothing(cluster: NamesRun) -> None:
    """They are left out with a caution; what else the container is called counts."""
    with cluster.container("h1", "odd", aliases="a b,..,example.com,fine,10.0.0.1 evil,ü"):
        until(lambda: cluster.knows("c3", "fine"), "the good alias")
        assert cluster.knows("c3", "example.com.demo")
        assert not cluster.ask("c3", "evil").data
        said = Path(record.load(cluster.name).folder / "h1" / "agent.log").read_text(encoding="utf-8")
        assert "'a b' of container odd is no name for DNS" in said


def test_a_dead_host_s_names_go_and_come_back_with_it(cluster: NamesRun) -> None:
    """Within 5 s everywhere else; its own server continues without the agent, and the other hosts' names stay."""
    before = cluster.server("h3")

    def dies() -> float:
        cluster.run("break", "h3 agent-kill")
        died = time.monotonic()
        try:
            assert cluster.knows("c3", "c1")
            took = seconds(died, lambda: not cluster.knows("c1", "c3"), "c3 is gone")
            until(lambda: cluster.knows("c1", "c2"), "c2, whose host lives, is named")
            assert cluster.knows("c3", "c3")
        finally:
            cluster.run("mend", "h3")
        until(lambda: cluster.knows("c1", "c3"), "c3 is back")
        assert cluster.server("h3") == before
        return took

    assert kept(DEAD_WITHIN, dies)


def test_a_new_agent_takes_its_server_over(cluster: NamesRun) -> None:
    """It is the same process, and learns what came meanwhile."""
    before = cluster.server("h1")
    cluster.run("break", "h1 agent-kill")
    try:
        with cluster.container("h2", "late"):
            assert cluster.knows("c1", "c2")
            cluster.run("mend", "h1")
            until(lambda: cluster.knows("c1", "late"), "the one that came meanwhile")
    finally:
        cluster.run("mend", "h1")
    assert cluster.server("h1") == before
    until(lambda: not cluster.knows("c1", "late"), "the one that went")


def test_a_server_that_hangs_or_dies_is_replaced(cluster: NamesRun) -> None:
    """A stopped one is seen by its silence, a killed one at once."""
    hung = cluster.server("h2")
    os.kill(hung, signal.SIGSTOP)
    until(lambda: cluster.server("h2") not in (0, hung) and cluster.knows("c2", "c1"), "a new one instead of the hung")
    killed = cluster.server("h2")
    os.kill(killed, signal.SIGKILL)
    until(lambda: cluster.server("h2") not in (0, killed) and cluster.knows("c2", "c1"), "and of the killed")
    said = [json.loads(line) for line in cluster.exec("h2", "linkspan events -o json").splitlines()]
    assert sum("hung, and is replaced" in one["what"] for one in said) == 1


def test_a_server_without_containers_that_cannot_run_is_given_up(cluster: NamesRun) -> None:
    """It stays for ten seconds only if it runs: its address went with the last container."""
    wish = {"name": "late", "pools": ["10.97.0.0/16"], "backend": "vxlan"}
    stays = service.LINGER * SHARED
    with cluster.timed("h1", service, LINGER=stays):
        cluster.call("h1", "POST", "/v1/networks", wish)
        with cluster.container("h1", "late1", "late"):
            until(lambda: cluster.server("h1", "late"), "its server")
        gone = time.monotonic()
        os.kill(cluster.server("h1", "late"), signal.SIGKILL)
        folder = cluster.folder / "h1" / "names" / "late"
        assert seconds(gone, lambda: not folder.exists(), "nothing of it is wanted any more") < stays / 2
        until(lambda: "late" not in cluster.not_well("h1"), "status is well")
    cluster.delete("late")


def test_another_process_at_the_port_is_named(cluster: NamesRun) -> None:
    """At once, in status; the container works without names, and has them once the port is free."""
    cluster.bridged("held", "10.99.0.0/24")
    with contextlib.ExitStack() as stack:
        with sockets.inside(f"{cluster.name}-h1"):
            other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            other.bind(("10.99.0.1", 53))
        stack.enter_context(cluster.container("h1", "held1", "held"))
        until(lambda: f"in use by process {os.getpid()}" in cluster.not_well("h1"), "status names it")
        assert "network held has no names: port 53/udp of its gateway 10.99.0.1" in cluster.not_well("h1")
        assert not cluster.server("h1", "held")
        other.close()
        until(lambda: cluster.knows("held1", "held1", "10.99.0.1"), "names")
        until(lambda: "held" not in cluster.not_well("h1"), "status is well")
    cluster.delete("held")


def test_a_bridge_s_names_are_its_host_s(cluster: NamesRun) -> None:
    """A network that does not cross hosts has the same addresses on each: another host's container is not there."""
    cluster.bridged("solo", "10.98.0.0/24", internal=True)
    with cluster.container("h1", "near", "solo"), cluster.container("h2", "far", "solo"):
        until(lambda: cluster.knows("near", "near", "10.98.0.1"), "its own")
        until(lambda: cluster.knows("far", "far", "10.98.0.1"), "the other's own")
        assert cluster.ask("near", "far", server="10.98.0.1").code == NXDOMAIN
        with pytest.raises(OSError, match="No route to host"):
            cluster.ask("near", "c1", server=GATEWAY)  # another network's server
        folder = cluster.folder / "h1"
        assert (folder / "names" / "solo" / "here").exists()
        # A question to one of the host's resolvers is answered by the network's own server; this one asks nobody.
        assert cluster.knows("near", "near", resolver())
        assert cluster.ask("near", "www.example.com", server=resolver()).code == REFUSED
    cluster.delete("solo")
    until(lambda: not cluster.server("h1", "solo"), "its server is gone")
    until(lambda: not (folder / "names" / "solo").exists(), "its files are gone")
    assert not (folder / "state" / "names-solo.log").exists()


def test_a_container_that_publishes_the_port_is_not_asked_for_names(cluster: NamesRun) -> None:
    """The host's port 53 is free for it, and questions to the gateway still reach the network's server."""
    port = {"host_ip": "", "host_port": 53, "port": 53, "protocol": "udp"}
    with cluster.container("h1", "dns", ports=[port]):
        for place in ("c1", "c2", "h1"):
            until(lambda place=place: cluster.knows(place, "dns"), f"{place} knows it by its server")
        with sockets.inside(f"{cluster.name}-dns"):
            way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with way:
            way.bind(("0.0.0.0", 53))
            way.settimeout(5 * SHARED)
            there = record.load(cluster.name).host("h1").addresses[0].partition("/")[0]
            with sockets.inside(f"{cluster.name}-router"):
                other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with other:
                other.sendto(b"to the container", (there, 53))
                assert way.recv(512) == b"to the container"


def test_the_underlay_is_not_answered(cluster: NamesRun) -> None:
    """A machine of the underlay that sends a question to the gateway is refused: names are not for the outside."""
    there = record.load(cluster.name).host("h1").addresses[0].partition("/")[0]
    cluster.inside("router", f"ip route add {GATEWAY}/32 via {there}")
    with sockets.inside(f"{cluster.name}-router"):
        way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with way:
        way.settimeout(5 * SHARED)
        way.connect((GATEWAY, 53))
        way.send(question("c1", A))
        with pytest.raises(OSError, match="No route to host"):  # what it is told by ICMP
            way.recv(512)


def test_a_storm_and_garbage_are_survived(cluster: NamesRun) -> None:
    """One container floods its server; other hosts and the agent continue, and the server is ok afterwards."""
    before, over = cluster.server("h1"), threading.Event()
    with sockets.inside(f"{cluster.name}-c1"):
        way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    way.connect((GATEWAY, 53))

    def flood() -> None:
        dice = random.Random(53)  # noqa: S311 - the same garbage each time
        good = question("c2", A)
        while not over.is_set():
            cut = good[: dice.randrange(len(good))]
            for data in (good, cut, cut + dice.randbytes(20), dice.randbytes(300), question("x.example", A)):
                with contextlib.suppress(OSError):
                    way.send(data)

    with way:
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for _ in range(200):
                until(lambda: cluster.knows("c2", "c1"), "another host's server answers")
            cluster.status("h1")
        finally:
            over.set()
            thread.join()
    until(lambda: cluster.knows("c1", "c2"), "the flooded server answers")
    until(lambda: cluster.status("h1")["drift"] == [], "all is well")
    assert cluster.server("h1") == before


def test_a_pool_that_is_added_costs_no_names(cluster: NamesRun) -> None:
    """Each host's server is at the gateways that are there: those of the pools that its containers have."""
    wish = {"name": "wide", "pools": ["10.90.0.0/29"], "subnet_len": [29], "backend": "vxlan"}
    cluster.call("h1", "POST", "/v1/networks", wish)
    until(lambda: any(cluster.blocks(h, "wide") for h in HOSTS), "a host has the only block")
    first = next(h for h in HOSTS if cluster.blocks(h, "wide"))
    second = next(h for h in HOSTS if h != first)
    with contextlib.ExitStack() as containers:
        containers.enter_context(cluster.container(first, "w1", network="wide"))
        until(lambda: cluster.knows("w1", "w1", "10.90.0.1"), "the network's server answers")
        cluster.call("h1", "PATCH", "/v1/networks/wide", {"add_pools": ["10.91.0.0/26"]})
        until(lambda: cluster.blocks(second, "wide"), "another host has a block of the pool added")
        containers.enter_context(cluster.container(second, "w2", network="wide"))
        for place, gateway in (("w1", "10.90.0.1"), ("w2", "10.91.0.1")):
            until(lambda p=place, g=gateway: cluster.knows(p, "w1", g) and cluster.knows(p, "w2", g), f"{place} knows")
        assert not any(cluster.status(host)["drift"] for host in HOSTS)
        (found,) = cluster.call(second, "GET", "/v1/endpoints/w2")
        address = found["addresses"][0].partition("/")[0]
        assert cluster.ask("w1", reverse(address), PTR, "10.90.0.1").data == ["w2.wide"]
    owned = {block for host in HOSTS for block in cluster.blocks(host, "wide")}
    free = next(n for n in range(0, 64, 8) if f"10.91.0.{n}/29" not in owned) + 3
    cluster.run("attach", first, "w3", f"--network wide --ip 10.91.0.{free}")  # its host has no other gateway any more
    until(lambda: cluster.knows("w3", "w3", "10.91.0.1"), "the server has gone along")
    cluster.run("detach", "w3")
    cluster.delete("wide")
