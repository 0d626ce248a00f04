"""Egress addresses in a cluster: what leaves a network has one address, on one host, whatever happens to that host."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from linkspan.core.errors import Conflict
from linkspan.lab import processes, record, sockets
from support.lab.cluster_runs import ClusterRun
from support.lab.underlay_capture import Echoes
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcd and etcdctl")

EGRESS, OUTSIDE = "192.0.2.100", "192.0.2.150"
MORE = {4: ("192.0.2.101", OUTSIDE), 6: ("2001:db8:1::101", "2001:db8:1::150")}
"""Another network's address of each family, and the machine's outside."""
HOSTS = ("h1", "h2", "h3")
FAILOVER = 8.0 * SHARED
"""Seconds until another host has the address of one that died."""


LAST = 15
"""Pings of three containers in one second."""


class EgressRun(ClusterRun):
    """Three hosts, and a machine on their segment that has no route to any container."""

    def outside(self) -> None:
        """Make the machine."""
        lab, far = record.load(self.name), f"{self.name}-outside"
        for words in (
            f"netns add {far}",
            f"-n {lab.switch} link add outside type veth peer name eth0 netns {far}",
            f"-n {lab.switch} link set outside master seg1 up",
            f"-n {far} link set eth0 up",
            f"-n {far} addr add {OUTSIDE}/24 dev eth0",
            f"-n {far} addr add {MORE[6][1]}/64 dev eth0 nodad",
        ):
            subprocess.run(["ip", *words.split()], check=True)

    def holders(self, address: str = EGRESS) -> list[str]:
        """Return the hosts whose kernels have an address."""
        return [host for host in HOSTS if self.ip(host, f"-o addr show to {address}")]

    def agent(self, host: str) -> int:
        """Return the pid of a host's agent."""
        (pid,) = processes.agents(self.folder, host)
        return pid

    @contextlib.contextmanager
    def talking(self, container: str) -> Iterator[Callable[[], None]]:
        """Give an exchange of a byte each way by a connection from a container to the outside."""
        with sockets.inside(f"{self.name}-outside"):
            server = socket.create_server((OUTSIDE, 0))
        with sockets.inside(f"{self.name}-{container}"):
            client = socket.create_connection(server.getsockname(), 10)
        with server, client, server.accept()[0] as accepted:
            accepted.settimeout(20 * SHARED)
            client.settimeout(20 * SHARED)

            def exchange() -> None:
                client.sendall(b"?")
                assert accepted.recv(1) == b"?"
                accepted.sendall(b"!")
                assert client.recv(1) == b"!"

            exchange()
            yield exchange

    def source(self, container: str, outside: str) -> str:
        """Return the address that the outside sees of a container, '' if it does not reach it."""
        with sockets.inside(f"{self.name}-outside"):
            server = socket.create_server((outside, 0), family=socket.AF_INET6 if ":" in outside else socket.AF_INET)
        try:
            with server, sockets.inside(f"{self.name}-{container}"):
                socket.create_connection(server.getsockname()[:2], 1).close()
                connection, (address, *_) = server.accept()
                connection.close()
                return str(address)
        except OSError:
            return ""

    def held(self) -> str:
        """Wait until one host has the address, all hosts know it, and all containers reach the outside; return it."""
        until(lambda: len(self.holders()) == 1, "one host has the address")
        (holder,) = self.holders()

        def known() -> bool:
            told = [self.call(host, "GET", "/v1/networks/demo")["exits"] for host in HOSTS]
            return told == [[{"address": EGRESS, "host": holder}]] * len(HOSTS)

        until(known, f"all know that {holder} has it")
        for container in ("c1", "c2", "c3"):
            until(lambda c=container: self.answers(c, OUTSIDE, 1), f"{container} reaches the outside")
        return holder


class Watch:
    """Looks all the while who has the address."""

    def __init__(self, run: EgressRun) -> None:
        self.twice: list[list[str]] = []
        self._run = run
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(AssertionError):
                if len(found := self._run.holders()) > 1:
                    self.twice.append(found)


@pytest.fixture(scope="module")
def run() -> Iterator[EgressRun]:
    """Give the lab; the network leaves by an address that h2 should hold."""
    found = EgressRun()
    try:
        found.run("up", "--backend vxlan --hosts 3 --store etcd --underlay dual")
        found.outside()
        found.exec("h1", f"linkspan network update demo --egress {EGRESS},host=h2")
        yield found
    finally:
        found.run("down")
        subprocess.run(["ip", "netns", "del", f"{found.name}-outside"], capture_output=True, check=False)


@pytest.fixture
def seen(run: EgressRun) -> Iterator[None]:
    """Look at the sources that the outside sees: it is the address alone, whatever a test does."""
    run.held()
    echoes = Echoes(f"{run.name}-outside")
    yield
    run.held()
    assert set(echoes.look()) == {EGRESS}


@pytest.mark.usefixtures("seen")
def test_what_leaves_has_the_address_from_whichever_host(run: EgressRun) -> None:
    """The preferred host holds it; `trace` shows where the source is replaced, and nothing differs on any host."""
    assert run.held() == "h2"
    for place, host in zip(("c1", "c2", "c3"), HOSTS, strict=True):
        found = json.loads(run.exec(host, f"linkspan trace {place} {OUTSIDE} -o json", code=-1))
        assert found["reachable"], (found["reason"], found["unknown"])
        changed = [(hop["host"], hop["headers"]) for hop in found["hops"] if hop["action"] == "masqueraded"]
        assert [host for host, _ in changed] == ["h2"], found
        assert f"ip {EGRESS}>{OUTSIDE}" in changed[0][1]
    for host in HOSTS:
        until(lambda host=host: json.loads(run.exec(host, "linkspan diff -o json", code=-1))["put"] == [], "no drift")


@pytest.mark.usefixtures("seen")
def test_nothing_answers_at_the_address(run: EgressRun) -> None:
    """The host drops packets to it that belong to no connection of a container's; the host's own address answers."""
    holder = run.held()
    own = record.load(run.name).host(holder).addresses[0].partition("/")[0]
    with sockets.inside(f"{run.name}-{holder}"):
        server = socket.create_server(("0.0.0.0", 8080))
    with server, sockets.inside(f"{run.name}-outside"):
        socket.create_connection((own, 8080), 5).close()
        with pytest.raises(TimeoutError):
            socket.create_connection((EGRESS, 8080), 1)


def ping(netns: str, source: str, target: str) -> None:
    """Send an echo request with any source from a namespace."""
    echo = struct.pack("!BBHHH", 8, 0, 0xF7FF, 0, 0)
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_ICMP, 0) + ends
    with sockets.inside(netns), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(header + echo, (target, 0))


@pytest.mark.usefixtures("seen")
def test_only_answers_come_in_and_by_the_holder_alone(run: EgressRun) -> None:
    """A host sends packets of the outside to a container on another host: neither holder nor others get one in."""
    holder = run.held()
    place, home = next((c, h) for c, h in zip(("c1", "c2", "c3"), HOSTS, strict=True) if h != holder)
    other = next(host for host in HOSTS if host not in (holder, home))
    target, echoes = run.address(place), Echoes(f"{run.name}-{place}")
    for host in (holder, other):
        (own,) = run.blocks(host, "demo")[:1]
        ping(f"{run.name}-{host}", "203.0.113.9", target)
        ping(f"{run.name}-{host}", own.partition("/")[0], target)
    until(lambda: len(echoes.look()) >= 2, "what a host sends with its own address comes")
    assert "203.0.113.9" not in echoes.look()


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize("how", ["agent-kill", "store-cut", "frozen"])
def test_another_host_takes_it_and_never_two_have_it(run: EgressRun, how: str) -> None:
    """Within eight seconds; the holder before, back or thawed, does not take it again, and connections go on."""
    before = run.held()
    far = [place for place, host in zip(("c1", "c2", "c3"), HOSTS, strict=True) if host != before]
    with contextlib.ExitStack() as open_, Watch(run) as watch:
        talks = [open_.enter_context(run.talking(place)) for place in far]
        pid, begun = run.agent(before), time.monotonic()
        if how == "frozen":
            os.kill(pid, signal.SIGSTOP)
        else:
            run.run("break", before, how)
        try:
            until(lambda: set(run.holders()) - {before}, "another host has it", FAILOVER - time.monotonic() + begun)
        finally:
            if how == "frozen":
                os.kill(pid, signal.SIGCONT)
            else:
                run.run("mend", before)
        until(lambda: run.host(before)["state"] == "alive", "it lives again")
        after = run.held()
        for talk in talks:
            talk()
    assert after != before
    assert watch.twice == []


@pytest.mark.usefixtures("seen")
def test_while_the_store_is_away_nobody_has_it_and_nothing_leaves(run: EgressRun) -> None:
    """Nobody could know that no other host has it; containers reach each other, and the outside once it is back."""
    run.held()
    etcd = run.etcd()
    with Watch(run) as watch:
        os.kill(etcd, signal.SIGSTOP)
        try:
            until(lambda: run.holders() == [], "nobody has it", 6.0 * SHARED)
            assert run.silent("c1", OUTSIDE)
            assert run.pings("c1", run.address("c2"))
        finally:
            os.kill(etcd, signal.SIGCONT)
        run.held()
    assert watch.twice == []


@pytest.mark.usefixtures("seen")
def test_an_operator_moves_it(run: EgressRun) -> None:
    """To another host that lives, by the same command."""
    target = next(host for host in HOSTS if host != run.held())
    with Watch(run) as watch:
        run.exec("h1", f"linkspan network update demo --egress {EGRESS},host={target}")
        until(lambda: run.holders() == [target], f"{target} has it")
        assert run.held() == target
    assert watch.twice == []


@pytest.mark.parametrize(
    ("backend", "pool", "family"),
    [
        ("host-gw", "10.90.0.0/16", 4),
        ("vxlan", "fd00:90::/48", 6),
        ("ipip", "10.91.0.0/16", 4),
        pytest.param("bgp", "10.92.0.0/16", 4, marks=pytest.mark.skipif(not shutil.which("bird"), reason="needs BIRD")),
    ],
)
def test_every_way_leads_to_the_holder(run: EgressRun, backend: str, pool: str, family: int) -> None:
    """Of another network, with an address of its own."""
    address, outside = MORE[family]
    run.create("more", pool, backend=backend)
    places = [f"p{number}" for number in range(3)]
    try:
        for host, place in zip(HOSTS, places, strict=True):
            run.run("attach", host, place, "--network more")
        run.exec("h3", f"linkspan network update more --egress {address}")
        for place in places:
            until(lambda p=place: run.source(p, outside) == address, f"{place} leaves by it")
        until(lambda: len(run.holders(address)) == 1, "one host has it")
        found = json.loads(run.exec("h1", f"linkspan trace p0 {outside} -o json", code=-1))
        assert found["reachable"], (found["reason"], found["unknown"])
    finally:
        for place in places:
            run.run("detach", place)
        run.delete("more")
    until(lambda: run.holders(address) == [], "it is gone with the network")


def test_an_address_that_another_machine_has_is_refused(run: EgressRun) -> None:
    """The error has the machine's MAC, and the address stays as it was."""
    run.held()
    mac = json.loads(run.ip("outside", "-j link show eth0"))[0]["address"]
    said = f"egress address {OUTSIDE} is in use by another machine, with MAC {mac} on eth0"
    with pytest.raises(Conflict, match=re.escape(said)):
        run.call("h1", "PATCH", "/v1/networks/demo", {"egress": [OUTSIDE]})
    assert run.call("h1", "GET", "/v1/networks/demo")["egress"][0]["address"] == EGRESS


def test_without_it_each_host_s_own_address_is_the_source_again(run: EgressRun) -> None:
    """And nothing of it is left: no rule, no table, no chain, no address, no open flow with a container's source."""
    run.held()
    hosts = {record.load(run.name).host(host).addresses[0].partition("/")[0] for host in HOSTS}
    with contextlib.ExitStack() as open_:
        for container in ("c1", "c2", "c3"):
            argv = ["ip", "netns", "exec", f"{run.name}-{container}", "ping", "-i0.2", OUTSIDE]
            process = open_.enter_context(subprocess.Popen(argv, stdout=subprocess.DEVNULL))
            open_.callback(process.kill)
        echoes = open_.enter_context(contextlib.closing(Echoes(f"{run.name}-outside")))
        until(lambda: len(echoes.look()) > LAST and set(echoes.seen[-LAST:]) == {EGRESS}, "they leave by the address")
        run.exec("h2", "linkspan network update demo --egress none")
        until(lambda: run.holders() == [], "nobody has it")
        until(lambda: set(echoes.look()[-LAST:]) == hosts, "open flows leave by the hosts' own addresses")
    for container, host in zip(("c1", "c2", "c3"), HOSTS, strict=True):
        own = record.load(run.name).host(host).addresses[0].partition("/")[0]
        until(lambda c=container, own=own: run.source(c, OUTSIDE) == own, f"{container} leaves by {host}")
    for host in HOSTS:
        until(lambda host=host: "chain leaving" not in run.inside(host, "nft list table inet linkspan"), "no chain")
        assert "fwmark" not in run.ip(host, "rule show")
        assert "table 77" not in run.ip(host, "route show table all")
