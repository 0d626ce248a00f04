"""A container in several networks finds the names of all of them, and nobody those of a network that it is not in."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from linkspan.dns import zone
from linkspan.lab import sockets
from linkspan.lab.topology import bare
from support.dns_queries import AAAA, NOERROR, NXDOMAIN, PTR, A, Answer, question, reverse
from support.lab.dns_runs import GATEWAY, GATEWAY6, NamesRun, resolver
from support.polling import until

pytestmark = pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq: apt install dnsmasq-base")

BACK, BACK6 = "10.245.0.1", "fd45::1"
VIEW = ("back", "demo")
PORT = zone.ports([VIEW])[VIEW]


@pytest.fixture(scope="module")
def cluster() -> Iterator[NamesRun]:
    """Give two hosts with networks demo and back, of two families each, and a container of demo on each (c1, c2)."""
    found = NamesRun()
    try:
        found.run("up", "--hosts 2 --backend vxlan --underlay dual")
        wish = {"name": "back", "pools": ["10.245.0.0/16", "fd45::/48"], "subnet_len": [24, 64], "backend": "vxlan"}
        found.call("h1", "POST", "/v1/networks", wish | {"internal": True})
        found.joined("back", ("h1", "h2"))
        yield found
    finally:
        found.run("down")


@pytest.fixture
def both(cluster: NamesRun) -> Iterator[dict[str, str]]:
    """Give container both on h1 in demo and back, db on h2 in back alone; db's addresses by family."""
    second = cluster.member("h1", "both", "back")
    with cluster.container("h1", "both"), second, cluster.container("h2", "db", "back") as made:
        until(lambda: cluster.knows("both", "db") and cluster.knows("both", "c2"), "names of both networks")
        yield {"6" if ":" in text else "4": bare(text) for text in made["addresses"]}


def direct(cluster: NamesRun, place: str, name: str) -> bool:
    """Return whether a container is answered at the port of the view itself, which nobody is told of."""
    with sockets.inside(f"{cluster.name}-{place}"):
        way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with way:
        way.settimeout(3)
        way.connect((GATEWAY, PORT))
        try:
            way.send(question(name, A))
            return bool(way.recv(512))
        except TimeoutError:
            return False


def test_names_of_all_its_networks_lead_to_addresses_and_back(cluster: NamesRun, both: dict[str, str]) -> None:
    """Whichever server it asks: a gateway of either network and family, or the host's resolver; by UDP and TCP."""
    for server in (GATEWAY, BACK, GATEWAY6, BACK6, resolver()):
        for name in ("db", "db.back", "db.back.internal"):
            assert cluster.ask("both", name, server=server) == Answer(NOERROR, [both["4"]])
            assert cluster.ask("both", name, AAAA, server) == Answer(NOERROR, [both["6"]])
        for address in both.values():
            assert cluster.ask("both", reverse(address), PTR, server) == Answer(NOERROR, ["db.back"])
        assert cluster.ask("both", "c2", server=server) == cluster.ask("c1", "c2")
        assert cluster.ask("both", "c2.demo", server=server) == cluster.ask("c1", "c2")
        assert cluster.ask("both", "nobody.back", server=server).code == NXDOMAIN
        assert cluster.ask("both", "DB", server=server, tcp=True).data == [both["4"]]
    assert len(cluster.ask("both", "both").data) == 2
    assert len(cluster.ask("both", "both.demo").data) == 1


def test_who_is_in_one_network_finds_its_names_alone(cluster: NamesRun, both: dict[str, str]) -> None:
    """At its own server, at the view's port, and at the server of the network that it is not in."""
    for name in ("db", "db.back.internal"):
        assert cluster.ask("c1", name).code == NXDOMAIN
        assert cluster.knows("both", name)
    for name, kind in (("db.back", A), (reverse(both["4"]), PTR)):
        assert not cluster.ask("c1", name, kind).data
    for name in ("c1", "c2.demo", "c2.demo.internal"):
        assert not cluster.ask("db", name, server=BACK).data
    assert len(cluster.ask("c1", "both").data) == 1
    with pytest.raises(OSError, match="No route to host"):
        direct(cluster, "c1", "db")
    with pytest.raises(OSError, match="No route to host"):
        cluster.ask("c1", "db", server=BACK)


@contextlib.contextmanager
def one_socket(cluster: NamesRun, place: str) -> Iterator[Callable[[], bool]]:
    """Give what asks the gateway for db, always by the same socket, and returns whether db was found."""
    with sockets.inside(f"{cluster.name}-{place}"):
        way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def found() -> bool:
        with contextlib.suppress(OSError):  # one question may come between two rules, and is refused
            way.send(question("db", A))
            return bool(int.from_bytes(way.recv(512)[6:8], "big"))
        return False

    with way:
        way.settimeout(5)
        way.connect((GATEWAY, 53))
        yield found


def test_names_of_a_network_come_and_go_with_it(cluster: NamesRun) -> None:
    """Also for a client that continues by one socket; the view and its files go when nobody has asked for a while."""
    moving, db = cluster.container("h1", "moving"), cluster.container("h2", "db", "back")
    with moving, db, one_socket(cluster, "moving") as found:
        until(lambda: cluster.knows("moving", "c2"), "names of its first network")
        assert not found()
        with cluster.member("h1", "moving", "back"):
            until(found, "names of the second")
            view = cluster.server("h1", "back+demo")
            assert view
        until(lambda: not found() and not cluster.knows("moving", "db"), "they are gone")
        assert cluster.server("h1", "back+demo") == view, "the next container would wait for another one"
        assert cluster.ask("moving", "db").code == NXDOMAIN
        assert cluster.knows("moving", "c2")
        with pytest.raises(OSError, match="No route to host"):
            direct(cluster, "moving", "db")
    until(lambda: not cluster.server("h1", "back+demo"), "nobody needs the view")
    until(lambda: not (cluster.folder / "h1" / "names" / "back+demo").exists(), "its file is gone")
    until(lambda: cluster.call("h1", "GET", "/v1/diff") == {"put": [], "delete": []}, "no difference")


def test_a_late_answer_does_not_keep_a_client_at_its_old_server(cluster: NamesRun) -> None:
    """Its answer would begin a connection of its own, to which all that the client asks by this socket belongs."""
    late, db = cluster.container("h1", "late"), cluster.container("h2", "db", "back")
    with late, db, one_socket(cluster, "late") as found, ThreadPoolExecutor(1) as asking:
        until(lambda: cluster.knows("late", "c2"), "names of its first network")
        server = cluster.server("h1")
        os.kill(server, signal.SIGSTOP)
        try:
            answer = asking.submit(found)
            with cluster.member("h1", "late", "back"):
                until(lambda: cluster.knows("late", "db"), "names of the second")
                os.kill(server, signal.SIGCONT)
                answer.result()
                until(found, "names of the second by the first socket", 20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGCONT)


def test_a_third_network_adds_its_names_and_takes_no_others_away(cluster: NamesRun, both: dict[str, str]) -> None:
    """A container in three networks has a view of its own, and returns to the view of two afterwards."""
    cluster.bridged("solo", "10.98.0.0/24", hosts=("h1", "h2"))
    with cluster.container("h1", "near", "solo"):
        with cluster.member("h1", "both", "solo"):
            for server in (GATEWAY, BACK, "10.98.0.1"):
                for name in ("near", "db", "c2"):
                    until(lambda n=name, s=server: cluster.knows("both", n, s), f"{name} at {server}")
            assert cluster.server("h1", "back+demo+solo")
        until(lambda: not cluster.knows("both", "near") and cluster.knows("both", "db"), "the two networks' alone")
        assert cluster.knows("both", "c2")
        assert cluster.call("h1", "GET", "/v1/diff") == {"put": [], "delete": []}
    cluster.delete("solo")
    until(lambda: not cluster.server("h1", "back+demo+solo"), "its view goes with the network")


def test_one_name_in_two_networks_leads_to_both(cluster: NamesRun, both: dict[str, str]) -> None:
    """As one name in one network does; with the network's name it leads to one."""
    with cluster.container("h1", "twice", aliases="api") as one, cluster.container("h2", "other", "back", "api") as two:
        addresses = {bare(one["addresses"][0]), bare(two["addresses"][0])}
        until(lambda: set(cluster.ask("both", "api").data) == addresses, "both are answered")
        assert cluster.ask("both", "api.back").data == [bare(two["addresses"][0])]


def test_a_view_outlives_the_agent_and_is_replaced_when_it_dies_or_hangs(
    cluster: NamesRun, both: dict[str, str]
) -> None:
    """A new agent takes it over; the plan names it, and there is no drift."""
    before = cluster.server("h1", "back+demo")
    cluster.run("break", "h1 agent-kill")
    assert cluster.knows("both", "db")
    cluster.run("mend", "h1")
    with cluster.container("h2", "late", "back"):
        until(lambda: cluster.knows("both", "late"), "what came since")
    assert cluster.server("h1", "back+demo") == before
    os.kill(before, signal.SIGKILL)
    until(lambda: cluster.server("h1", "back+demo") not in (0, before) and cluster.knows("both", "db"), "a new one")
    hung = cluster.server("h1", "back+demo")
    os.kill(hung, signal.SIGSTOP)
    until(lambda: cluster.server("h1", "back+demo") not in (0, hung) and cluster.knows("both", "db"), "another one")
    said = [json.loads(line) for line in cluster.exec("h1", "linkspan events -o json").splitlines()]
    assert "the names' server of networks back and demo hung, and is replaced" in {one["what"] for one in said}
    lines = json.loads(cluster.exec("h1", "linkspan plan --network back -o json"))
    (server,) = [line for line in lines if line["key"] == "names-back+demo"]
    assert "names for containers in networks back and demo" in server["why"]
    leads = [line for line in lines if line["kind"] == "NftElement" and "view_of4" in line["key"]]
    assert leads
    assert all("names for containers in several networks" in line["why"] for line in leads)
    until(lambda: cluster.call("h1", "GET", "/v1/diff") == {"put": [], "delete": []}, "no difference")


def test_another_process_at_a_view_s_port_is_named(cluster: NamesRun) -> None:
    """The container keeps the names of one of its networks meanwhile, and finds those of both once the port is free."""
    until(lambda: not cluster.server("h1", "back+demo"), "no view")
    with sockets.inside(f"{cluster.name}-h1"):
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with other, cluster.container("h1", "both"), cluster.container("h2", "db", "back"):
        other.bind((GATEWAY, PORT))
        with cluster.member("h1", "both", "back"):
            until(lambda: f"in use by process {os.getpid()}" in cluster.not_well("h1"), "status names it")
            said = f"containers in networks back and demo find the names of one of them only: port {PORT}/udp"
            assert said in cluster.not_well("h1")
            assert "names of back and demo" in cluster.exec("h1", "linkspan doctor", code=-1)
            assert cluster.knows("both", "c2")
            assert not cluster.knows("both", "db")
            other.close()
            until(lambda: cluster.knows("both", "db"), "names of both networks")
            until(lambda: "back" not in cluster.not_well("h1"), "status is well")


def test_trace_says_where_a_question_goes(cluster: NamesRun, both: dict[str, str]) -> None:
    """To the view for a container in both networks, and to nobody for another one that asks at the view's port."""
    asked = cluster.exec("h1", f"linkspan trace both@demo {GATEWAY} --port 53/tcp -o json", code=-1)
    assert json.loads(asked)["reachable"], asked
    assert f"a DNS query: now to {GATEWAY} port {PORT}" in asked
    refused = cluster.exec("h1", f"linkspan trace c1 {GATEWAY} --port {PORT}/udp -o json", code=-1)
    assert not json.loads(refused)["reachable"], refused
    assert "names of several networks are answered only to containers in all of them" in refused
