"""Policies by DNS name on the real kernel, with the network's own name server between the container and a resolver."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.policy import name_rules
from support.agent.agent_host import Host, World, run
from support.agent.traffic import answers, asked, inside, refusal, serving
from support.dns_queries import ask
from support.dns_records import CNAME, Record, addresses, resolving
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq: apt install dnsmasq-base")

API, API6 = "203.0.113.10", "2001:db8:5::10"
MOVED, WILD, REAL, TCP_ONLY, VIEWED, ELSEWHERE = (f"203.0.113.{last}" for last in (11, 12, 13, 14, 15, 99))
RESOLVER, POOLS = "198.51.100.2", ("10.211.0.0/16", "fd00:211::/64")
OUT = """
policy: out
select: {labels: {app: web}}
egress:
- to: [{dns: [api.example.com, "*.example.org", none.example.com]}]
  ports: [80/tcp, 81/tcp]
"""


class Place:
    """A host with a container under the policy, a resolver beyond its uplink, and servers at all addresses there."""

    def __init__(self, world: World) -> None:
        self.host = Host(world, names=True)
        self.outside = self.host.outside()
        for text in (API, API6, MOVED, WILD, REAL, TCP_ONLY, VIEWED, ELSEWHERE):
            run("ip", "addr", "add", f"{text}/{128 if ':' in text else 32}", "dev", "lo", netns=self.outside)
        resolvers = self.host.folder / "resolv.conf"
        resolvers.write_text(f"nameserver {RESOLVER}\n", encoding="ascii")
        with self.host.config.open("a", encoding="ascii") as settings:
            settings.write(f'resolv_conf = "{resolvers}"\n')
        self.host.start()
        self.host.network("shop", *POOLS, options={"mode": "routed"})
        self.web = world.namespace()
        self.host.attach(self.web, "shop", name=self.web, labels={"app": "web"})
        self.zone: dict[str, list[Record]] = {
            "api.example.com": addresses("api.example.com", 300, API, API6),
            "www.deep.example.org": [
                Record("www.deep.example.org", CNAME, 60, "cdn.example.net"),
                *addresses("cdn.example.net", 600, WILD),
            ],
            "evil.example.org": addresses(
                "evil.example.org", 600, "10.211.0.9", "127.0.0.1", "198.51.100.1", "169.254.169.254", REAL
            ),
            "tcp.example.org": addresses("tcp.example.org", 600, TCP_ONLY),
            "view.example.org": addresses("view.example.org", 600, VIEWED),
            "other.example.net": addresses("other.example.net", 600, ELSEWHERE),
        }

    def asks(self, name: str, *, tcp: bool = False, seconds: float = 10.0) -> list[str]:
        """Return what the container is told about a name, nothing if there is no answer."""
        with inside(self.web), contextlib.suppress(OSError):
            return ask("10.211.0.1", name, seconds=seconds, tcp=tcp).data
        return []

    def known(self, name: str) -> dict[str, int]:
        """Return the addresses that a name has on this host, with their seconds."""
        found = {one["name"]: one for one in self.host.json("policy", "show", "out")["names"]}
        return {one["address"]: one["seconds"] for one in found[name]["addresses"]}

    def passes(self, address: str) -> bool:
        """Return whether the container gets an answer at port 80."""
        return answers(self.web, address, 80)

    def emptied(self, name: str) -> None:
        """Take the addresses of a name out of its set, as the kernel does when their time is over."""
        run("nft", "flush", "set", "inet", "linkspan", name_rules.named(name, 4), netns=self.host.netns)

    def forgets(self) -> None:
        """Have the name server forget what it knows, as it does when a TTL is over."""
        for pid in run("ip", "netns", "pids", self.host.netns).split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() == "dnsmasq\n":
                    os.kill(int(pid), signal.SIGHUP)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Return the place of this file's tests, with the policy applied."""
    world = World()
    try:
        made = Place(world)
        try:
            with resolving(made.outside, RESOLVER, made.zone), serving(made.outside, 80):
                until(lambda: made.asks("other.example.net", seconds=1) == [ELSEWHERE], "the name server answers")
                file = tmp_path_factory.mktemp("names") / "out.yaml"
                file.write_text(OUT, encoding="ascii")
                assert made.passes(ELSEWHERE)
                (warning,) = made.host.json("policy", "apply", str(file))["warnings"]
                assert warning.endswith("none.example.com leads nowhere from this host: there is no such name")
                yield made
        finally:
            made.host.close()
    finally:
        world.remove()


def test_a_name_is_open_before_anybody_has_asked_for_it(place: Place) -> None:
    """The agent has asked: by IPv4 and IPv6; another address is refused at once, for nobody was told of it."""
    assert place.passes(API)
    assert place.passes(API6)
    assert refusal(place.web, ELSEWHERE, 80)
    assert refusal(place.web, API, 82), "another port"
    assert place.known("api.example.com").keys() == {API, API6}
    assert all(0 < seconds <= 330 for seconds in place.known("api.example.com").values())
    assert place.host.differences() == []


def test_a_name_below_a_wildcard_is_open_once_the_container_has_asked(place: Place) -> None:
    """By an alias in the same answer; the first connection after it waits for its second packet at most."""
    assert refusal(place.web, WILD, 80)
    assert place.asks("www.deep.example.org") == [WILD]
    until(lambda: _connects(place.web, WILD), "the first connection", 10 * SHARED)
    assert 0 < place.known("*.example.org")[WILD] <= 90, "the alias has the shorter time"


def _connects(netns: str, address: str) -> bool:
    """Return whether a connection comes about, with as many tries as TCP makes in some seconds."""
    try:
        return asked(netns, address, 80, seconds=5) != ("", "")
    except OSError:
        return False


def test_what_is_not_open_is_not_opened_by_another_name(place: Place) -> None:
    """Its answer is none of the policy's business; while an answer may be on its way, packets are dropped silently."""
    assert place.asks("other.example.net") == [ELSEWHERE]
    assert not place.passes(ELSEWHERE)
    until(lambda: refusal(place.web, ELSEWHERE, 80), "a refusal, when no answer is on its way any more", 20 * SHARED)


def test_no_name_opens_the_cluster(place: Place) -> None:
    """Its owner answers with an address of the pool, of the host, of loopback: only the one outside counts."""
    assert len(place.asks("evil.example.org")) == 5
    until(lambda: REAL in place.known("*.example.org"), "the address outside is known", 10 * SHARED)
    assert place.known("*.example.org").keys() <= {REAL, WILD, TCP_ONLY, VIEWED}


def test_an_answer_by_tcp_counts_as_well(place: Place) -> None:
    """Clients ask by TCP if an answer is long."""
    assert place.asks("tcp.example.org", tcp=True) == [TCP_ONLY]
    until(lambda: place.passes(TCP_ONLY), "the address is open", 10 * SHARED)


def test_a_container_in_several_networks_is_answered_at_another_port(place: Place) -> None:
    """By the server that has the names of all of them: what that tells it counts as well."""
    place.host.network("second", "10.212.0.0/16", options={"mode": "routed"})
    place.host.attach(place.web, "second", name=place.web, ifname="eth1", labels={"app": "web"})
    try:
        until(lambda: "10.211." in _listed(place, "map", "view_of4"), "its questions are redirected")
        until(lambda: place.asks("view.example.org", seconds=1) == [VIEWED], "the server answers")
        until(lambda: place.passes(VIEWED), "the address is open", 10 * SHARED)
    finally:
        place.host.detach(place.web, "eth1")
        place.host.cli("network", "delete", "second")


def _listed(place: Place, kind: str, name: str) -> str:
    return run("nft", "list", kind, "inet", "linkspan", name, netns=place.host.netns)


def test_the_records_answer_by_name(place: Place) -> None:
    """`policy can` knows a name that a policy has, and what this host knows of an address; `trace` asks the kernel."""
    yes = place.host.json("policy", "can", place.web, "api.example.com", "--port", "80/tcp")
    assert (yes["allowed"], yes["by"]) == (True, {"policy": "out", "line": 5})
    assert "api.example.com has this address" in place.host.json("policy", "can", place.web, API)["why"]
    no = place.host.json("policy", "can", place.web, ELSEWHERE, "--port", "80/tcp", code=3)
    assert "no DNS name of its policies has this address now" in no["why"]
    assert place.host.json("policy", "can", place.web, "www.example.org")["ports"] == ["80-81/tcp"]
    traced = place.host.json("trace", place.web, ELSEWHERE, "--port", "80", code=3)
    assert "policy out line 2 refuses it" in traced["reason"]
    assert place.host.json("trace", place.web, API, "--port", "80")["reachable"]


def test_a_name_that_leads_nowhere_is_named(place: Place) -> None:
    """`doctor` and `policy show` say why."""
    found = place.host.client.call("GET", "/v1/doctor")
    named = [one for one in found if one["check"] == "names of policies"]
    assert [one["detail"] for one in named] == ["DNS name none.example.com: there is no such name"]
    assert "# none.example.com here, now: there is no such name" in place.host.cli("policy", "show", "out")


def test_a_set_that_somebody_empties_is_filled_again(place: Place) -> None:
    """Nobody waits until the name is asked for again."""
    assert place.passes(API)
    place.emptied("api.example.com")
    until(lambda: place.passes(API), "the set is filled", 10 * SHARED)


def test_an_address_whose_time_is_over_keeps_its_open_connections_only(place: Place) -> None:
    """While no agent runs, too; a new agent takes over what is left, and a change of policies cuts nothing of it."""
    with inside(place.outside):
        listening = socket.create_server((API, 81))
    with inside(place.web):
        client = socket.create_connection((API, 81), timeout=10)
    with listening, client, listening.accept()[0] as accepted:
        accepted.settimeout(10)
        place.host.stop()
        try:
            assert place.passes(API)
            place.zone["api.example.com"] = addresses("api.example.com", 300, MOVED)
            place.emptied("api.example.com")
            place.forgets()
            until(lambda: refusal(place.web, API, 80), "a refusal", 20 * SHARED)
            client.sendall(b"still")
            assert accepted.recv(16) == b"still"
        finally:
            place.host.start()
        until(lambda: REAL in place.known("*.example.org"), "the new agent knows what is left", 10 * SHARED)
        until(lambda: place.passes(MOVED), "the name is where it is now", 10 * SHARED)
        place.host.cli("network", "update", "shop", "--policy", "default-deny")
        place.host.cli("network", "update", "shop", "--policy", "default-allow")
        client.sendall(b"there")
        assert accepted.recv(16) == b"there"
    assert not place.passes(API)
    assert place.host.differences() == []


def test_with_the_policy_goes_all_of_it(place: Place) -> None:
    """Everything outside is open again, and no set of a name is left."""
    place.host.cli("policy", "delete", "out")
    assert place.passes(ELSEWHERE)
    until(lambda: "named4" not in _sets(place), "the sets are gone", 10 * SHARED)
    assert place.host.differences() == []


def _sets(place: Place) -> str:
    return run("nft", "-t", "list", "table", "inet", "linkspan", netns=place.host.netns)
