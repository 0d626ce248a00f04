"""DNS servers and the outside: they forward every other query, once, and limit what one container may ask."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from linkspan.lab import record, sockets
from support.dns_queries import NOERROR, NXDOMAIN, REFUSED, TXT, A, Answer, question
from support.lab.dns_runs import GATEWAY, NamesRun, Responder
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq: apt install dnsmasq-base")

OUTSIDE, SAID = "198.51.100.53", "203.0.113.80"
RATE, AT_ONCE = 5000, 5
"""Questions a second by one client that are to be answered, and how many follow each other between two rests of it."""
BY_TCP = 8
"""Connections of one client (core/ruleset.py)."""


class OutsideRun(NamesRun):
    """Two hosts, of which the first one's resolvers are a test's."""

    numbers = itertools.count()

    @property
    def underlay(self) -> str:
        """The first host's own address."""
        return record.load(self.name).host("h1").addresses[0].partition("/")[0]

    def resolvers(self, *addresses: str) -> None:
        """Give h1 these resolvers."""
        path = self.folder / "h1" / "resolv.conf"
        new = path.with_suffix(".new")
        new.write_text("".join(f"nameserver {address}\n" for address in addresses), encoding="ascii")
        os.replace(new, path)

    def fresh(self) -> str:
        """Return a name of the outside that nobody asked for yet."""
        return f"n{next(self.numbers)}.example.com"

    def hears(self, place: str, server: str = GATEWAY) -> bool:
        """Return whether a name of the outside is answered, by the outside."""
        with contextlib.suppress(OSError):
            return self.ask(place, self.fresh(), server=server) == Answer(NOERROR, [SAID])
        return False


@pytest.fixture(scope="module")
def cluster() -> Iterator[OutsideRun]:
    """Give two hosts, behind whose router there is a resolver."""
    found = OutsideRun()
    try:
        found.run("up", "--hosts 2 --segments 2")
        found.inside("router", f"ip address add {OUTSIDE}/32 dev lo")
        found.resolvers(OUTSIDE)
        settings = found.folder / "h1" / "agent.toml"
        settings.write_text(f'resolv_conf = "{found.folder}/h1/resolv.conf"\n', encoding="ascii")
        found.run("break", "h1 agent-kill")
        found.run("mend", "h1")
        yield found
    finally:
        found.run("down")


@pytest.fixture(scope="module")
def outside(cluster: OutsideRun) -> Iterator[Responder]:
    """Give the resolver."""
    made = Responder(f"{cluster.name}-router", OUTSIDE, SAID)
    until(lambda: cluster.hears("c1"), "the outside is asked")
    yield made
    made.close()


def test_no_name_of_ours_is_asked_outside(cluster: OutsideRun, outside: Responder) -> None:
    """Bare ones, those of the network's domains and another network's whole ones, of whatever type; the rest is."""
    cluster.bridged("other", "10.97.0.0/24", hosts=("h1", "h2"))
    with cluster.container("h1", "stranger", "other"):
        until(lambda: cluster.knows("stranger", "stranger.other.internal", "10.97.0.1"), "it has its name")
        until(lambda: cluster.ask("c1", "stranger.other.internal").code == NXDOMAIN, "others have not")
        names = ("nobody", "nobody.demo", "demo.internal", "nobody.demo.internal", "stranger.other.internal")
        outside.asked.clear()
        for name, kind in itertools.product(names, (A, TXT)):
            assert not cluster.ask("c1", name, kind).data, name
        assert cluster.ask("c1", "metadata.google.internal") == Answer(NOERROR, [SAID])
        assert not outside.names() & set(names)
    cluster.delete("other")


def test_an_internal_network_is_no_way_outside_and_closes_none(cluster: OutsideRun, outside: Responder) -> None:
    """Only its own container is refused; one that is also in an ordinary network is answered by each server."""
    inner = "10.96.0.1"
    cluster.bridged("inner", "10.96.0.0/24", internal=True, hosts=("h1", "h2"))
    with cluster.container("h1", "guest", "inner"):
        until(lambda: cluster.knows("guest", "guest", inner), "it has its name")
        assert cluster.ask("guest", cluster.fresh(), server=inner).code == REFUSED
        with cluster.member("h1", "guest", "demo"):
            until(lambda: cluster.hears("guest", inner), "the outside is asked")
            assert cluster.hears("guest")
            assert cluster.hears("guest", OUTSIDE)
            assert cluster.ask("guest", "c2", server=inner) == cluster.ask("c1", "c2")
            outside.asked.clear()
            for name in ("nobody", "nobody.inner", "nobody.demo.internal"):
                assert cluster.ask("guest", name).code == NXDOMAIN
            assert not outside.asked
        until(lambda: cluster.ask("guest", cluster.fresh(), server=inner).code == REFUSED, "it is alone again")
    cluster.delete("inner")


def test_a_container_that_is_the_host_s_resolver_asks_the_outside(cluster: OutsideRun, outside: Responder) -> None:
    """Others' questions to the outside come to their network's server, and its own would come back to it."""
    with cluster.container("h1", "dns") as made:
        address = made["addresses"][0].partition("/")[0]
        assert cluster.ask("dns", "c1", server=OUTSIDE) == cluster.ask("c1", "c1")
        server = Responder(f"{cluster.name}-dns", "0.0.0.0", via=OUTSIDE)
        try:
            cluster.resolvers(address, OUTSIDE)
            until(lambda: cluster.ask("dns", "c1", server=OUTSIDE) == Answer(NOERROR, [SAID]), "it is let out")
            until(lambda: cluster.hears("c1") and server.names() & outside.names(), "it is asked, and asks")
            assert cluster.ask("c1", "c2", server=OUTSIDE) == cluster.ask("c1", "c2")
        finally:
            server.close()
            cluster.resolvers(OUTSIDE)


def test_a_container_that_publishes_the_port_asks_the_outside(cluster: OutsideRun, outside: Responder) -> None:
    """The host's resolver may be its own address, and is this container then."""
    port = {"host_ip": "", "host_port": 53, "port": 53, "protocol": "udp"}
    with cluster.container("h1", "dns", ports=[port]):
        until(lambda: cluster.ask("dns", "c1", server=OUTSIDE) == Answer(NOERROR, [SAID]), "it is let out")
        server = Responder(f"{cluster.name}-dns", "0.0.0.0", via=OUTSIDE)
        try:
            cluster.resolvers(cluster.underlay)
            until(lambda: cluster.hears("c1") and server.names() & outside.names(), "it is asked, and asks")
        finally:
            server.close()
            cluster.resolvers(OUTSIDE)
    until(lambda: cluster.hears("c1"), "the outside is asked again")


def test_a_resolver_that_asks_the_gateway_is_left_out(cluster: OutsideRun, outside: Responder) -> None:
    """Questions would go round: the server finds that out, refuses them at once, and its own names continue."""
    server = Responder(f"{cluster.name}-h1", cluster.underlay, via=GATEWAY)
    try:
        cluster.resolvers(cluster.underlay)
        until(lambda: cluster.ask("c1", cluster.fresh()).code == REFUSED, "the resolver is left out")
        names = {cluster.fresh() for _ in range(20)}
        for name in names:
            assert cluster.ask("c1", name).code == REFUSED
        assert not server.names() & names
        assert cluster.knows("c1", "c2")
    finally:
        server.close()
        cluster.resolvers(OUTSIDE)
    until(lambda: cluster.hears("c1"), "the outside is asked again")
    assert outside.asked


def test_one_container_s_connections_do_not_keep_out_others(cluster: OutsideRun, outside: Responder) -> None:
    """It has so many at once, and is refused more; another one of its host is answered by TCP meanwhile."""
    with cluster.container("h1", "calm"), contextlib.ExitStack() as stack:
        until(lambda: cluster.knows("calm", "calm"), "it has its name")
        refused = 0
        for _ in range(3 * BY_TCP):
            with sockets.inside(f"{cluster.name}-c1"):
                way = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            way.settimeout(10 * SHARED)
            try:
                way.connect((GATEWAY, 53))
            except ConnectionRefusedError:
                refused += 1
        assert refused == 2 * BY_TCP
        for _ in range(10):
            assert cluster.ask("calm", "c1", tcp=True).data
        with pytest.raises(ConnectionRefusedError):
            cluster.ask("c1", "c1", tcp=True)
        assert cluster.ask("c1", "c1").data
    until(lambda: cluster.ask("c1", "c1", tcp=True).data, "it has connections again")
    until(lambda: cluster.status("h1")["drift"] == [], "what the kernel counts is no drift")
    assert cluster.call("h1", "GET", "/v1/diff") == {"put": [], "delete": []}


def test_a_storm_of_one_container_leaves_its_neighbours_their_names(cluster: OutsideRun, outside: Responder) -> None:
    """It sends what it can, of names here and outside; another one of the same host is answered all the while."""
    over = threading.Event()
    with sockets.inside(f"{cluster.name}-c1"):
        way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    way.connect((GATEWAY, 53))

    def flood() -> None:
        numbers = itertools.count()
        while not over.is_set():
            for data in (question("c2", A), question("nobody", A), question(f"x{next(numbers)}.example", A)):
                with contextlib.suppress(OSError):
                    way.send(data)

    with cluster.container("h1", "calm"), way:
        until(lambda: cluster.knows("calm", "calm"), "it has its name")
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for _ in range(100):
                assert cluster.ask("calm", "c2").data  # the second packet at the latest, as any resolver has it
        finally:
            over.set()
            thread.join()
    until(lambda: cluster.hears("c1"), "the outside is asked again")


def test_one_client_s_many_questions_are_all_answered(cluster: OutsideRun, outside: Responder) -> None:
    """5,000 a second, for names of the network: this is no overload."""
    with sockets.inside(f"{cluster.name}-c1"):
        way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with way:
        way.settimeout(10 * SHARED)
        way.connect((GATEWAY, 53))
        due = time.monotonic()
        for number in range(3 * RATE):
            if number % AT_ONCE == 0:
                due = max(due + AT_ONCE / RATE, time.monotonic())  # what a loaded machine missed is not made good
                time.sleep(max(0.0, due - time.monotonic()))
            way.send(question("c2", A, number & 0xFFFF))
            assert int.from_bytes(way.recv(512)[:2], "big") == number & 0xFFFF
