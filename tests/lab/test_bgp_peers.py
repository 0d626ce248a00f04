"""Foreign BGP speakers: what they may do to a host, and what they see of it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from linkspan.agent import healer
from linkspan.lab import commands
from support.lab.bgp_runs import BgpRun, Speaker, speaking
from support.polling import SHARED, until

HOSTS = ("h1", "h2")
ROUTER = {"bgp__peer__r1__address": "192.0.2.101", "bgp__peer__r1__as": "65001"}
FREE, FREE6 = "10.244.250.0/24", "fd00:244:0:fa::/64"
"""Blocks that no host has."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[BgpRun]:
    """Give two hosts on one segment, with two stacks."""
    with BgpRun.mesh("--underlay dual --hosts 2", HOSTS) as found:
        yield found


@pytest.fixture
def router(mesh: BgpRun) -> Iterator[Speaker]:
    """Give a router that is h1's peer, and leave h1 without peers at the end."""
    mesh.set("h1", **ROUTER)
    with speaking(mesh) as found:
        yield found
    settings = mesh.host("h1")["settings"]
    mesh.call("h1", "PATCH", "/v1/hosts/h1", dict.fromkeys(settings, ""))
    until(lambda: "peer_" not in mesh.birdc("h1", "show protocols"), "h1 has no peer but h2")


def block(lab: BgpRun, host: str, family: int = 4) -> str:
    """Return a host's block."""
    return next(b for b in lab.blocks(host, "demo") if (":" in b) == (family == 6))


def count(lab: BgpRun, what: str) -> int:
    """Return how many routes h1's session with the router has imported, filtered or exported."""
    return sum(int(n) for n in re.findall(rf"(\d+) {what}", lab.birdc("h1", "show protocols all peer_r1")))


def _up(lab: BgpRun) -> bool:
    """Return whether h1 has an established session with the router."""
    return "Established" in lab.birdc("h1", "show protocols peer_r1")


def _kept(lab: BgpRun) -> bool:
    """Return whether h1 keeps routes for the router, which has not announced all of them again."""
    return "graceful restart active" in lab.birdc("h1", "show protocols all peer_r1")


def test_what_a_peer_may_not_give_is_filtered(mesh: BgpRun, router: Speaker) -> None:
    """10,000 foreign prefixes, a default, the host's networks, its own blocks, a pool: only free blocks come."""
    before = mesh.standing("h1", "mesh_h2")
    foreign = [f"172.{16 + n // 256 % 16}.{n % 256}.{n // 4096 * 64}/26" for n in range(10_000)]
    more = ["0.0.0.0/0", "::/0", "192.0.2.0/24", "192.0.2.1/32", block(mesh, "h1"), block(mesh, "h1", 6)]
    more += [block(mesh, "h1").replace(".0/24", ".2/32"), "10.244.0.0/16", "10.0.0.0/8", FREE, FREE6]
    router.start(65001, [*foreign, *more])
    until(lambda: count(mesh, "filtered") == len(foreign) + len(more) - 2, "all has come and was filtered")
    assert count(mesh, "imported") == 2
    until(lambda: FREE in mesh.learnt("h1") and FREE6 in mesh.learnt("h1", 6), "what may come is in the kernel")
    assert set(mesh.learnt("h1")) == {FREE, block(mesh, "h2")}
    assert set(mesh.learnt("h1", 6)) == {FREE6, block(mesh, "h2", 6)}
    assert mesh.standing("h1", "mesh_h2").same(before)
    router.stop()
    until(lambda: FREE not in mesh.learnt("h1"), "what was withdrawn is gone", 2 * SHARED)


def test_another_hosts_block_from_a_router_is_the_longer_way(mesh: BgpRun, router: Speaker) -> None:
    """It is legitimate that a router knows it; the host itself, being nearer, is preferred."""
    theirs = block(mesh, "h2")
    router.start(65001, [theirs])
    until(lambda: count(mesh, "imported") == 1, "the route has come")
    assert mesh.learnt("h1")[theirs]["gateway"] == "192.0.2.2"
    assert mesh.pings("c1", mesh.address("c2"))


def test_what_is_asked_for_is_taken_and_given(mesh: BgpRun, router: Speaker) -> None:
    """A default route and foreign prefixes; networks of the host's own interfaces."""
    mesh.ip("h1", "addr add 198.51.100.1/32 dev lo")
    asked = {"bgp__peer__r1__import": "default,172.16.0.0/12+", "bgp__peer__r1__export": "198.51.100.1/32"}
    mesh.set("h1", **asked)
    router.start(65001, ["0.0.0.0/0", "172.20.0.0/24", "172.32.0.0/24"])
    until(lambda: set(mesh.learnt("h1")) >= {"default", "172.20.0.0/24"}, "both are in the kernel")
    assert "172.32.0.0/24" not in mesh.learnt("h1")
    until(lambda: "198.51.100.1/32" in router.birdc("show route protocol foreign"), "the router has it")
    mesh.ip("h1", "addr del 198.51.100.1/32 dev lo")


def test_what_a_peer_sees_of_a_host(mesh: BgpRun, router: Speaker) -> None:
    """Its own blocks and no other host's, itself as next hop in both families, with its marks."""
    mesh.set("h1", bgp__community="64512:100,4200000001:1:2", bgp__med="7")
    router.start(65001, [])
    until(lambda: router.birdc("show route protocol foreign all").count("BGP.med: 7") == 2, "the marks are there")
    seen = router.birdc("show route protocol foreign all")
    assert sorted(re.findall(r"^(\S+/\d+)", seen, re.M)) == sorted(mesh.blocks("h1", "demo"))
    assert re.findall(r"BGP.next_hop: (\S+)", seen) == ["192.0.2.1", "2001:db8:1::1"]
    assert seen.count("(64512,100)") == seen.count("(4200000001, 1, 2)") == seen.count("BGP.med: 7") == 2


def test_a_next_hop_that_is_not_on_the_link_does_not_count(mesh: BgpRun, router: Speaker) -> None:
    """Unless it was asked for: then it goes by the host's own routes."""
    router.start(65001, [FREE], next_hop="198.51.100.9")
    until(lambda: FREE in mesh.birdc("h1", "show route"), "the route has come")
    assert "unreachable" in mesh.birdc("h1", f"show route {FREE} all")
    assert FREE not in mesh.learnt("h1")
    mesh.set("h1", bgp__next_hops="any")
    mesh.ip("h1", "route add 198.51.100.0/24 via 192.0.2.101")
    until(lambda: mesh.learnt("h1").get(FREE, {}).get("gateway") == "192.0.2.101", "it goes by the router")
    mesh.set("h1", bgp__next_hops="")
    until(lambda: FREE not in mesh.learnt("h1"), "it counts no more")
    mesh.ip("h1", "route del 198.51.100.0/24")


def test_equally_good_next_hops_are_all_used(mesh: BgpRun, router: Speaker) -> None:
    """In both families; if one goes, packets take the others."""
    mesh.set("h1", bgp__peer__r2__address="192.0.2.102", bgp__peer__r2__as="65002")
    with speaking(mesh, "r2", 102) as second:
        router.start(65001, [FREE, FREE6])
        second.start(65002, [FREE, FREE6])
        for family, prefix in ((4, FREE), (6, FREE6)):
            until(
                lambda f=family, p=prefix: len(mesh.learnt("h1", f).get(p, {}).get("nexthops", ())) == 2,
                f"two next hops of IPv{family}",
            )
        second.stop()
        until(lambda: mesh.learnt("h1").get(FREE, {}).get("gateway") == "192.0.2.101", "one is left")


def test_a_password_is_the_sessions_and_nowhere_else(mesh: BgpRun, router: Speaker) -> None:
    """Without the right file the session is down, and that is reported; the value is in no record, plan or log."""
    value, other = "correct-horse", "battery-nail"
    file = mesh.folder / "password"
    file.write_text(value)
    file.chmod(0o644)
    with mesh.timed("h1", healer, FULL=3.0):  # the timer by which it finds what has changed in the file
        router.start(65001, [FREE], session=f'authentication md5; password "{value}";')
        mesh.set("h1", bgp__peer__r1__password_file=str(file))
        until(lambda: "must belong to root" in mesh.not_well("h1"), "the file's mode is told")
        assert "peer_r1" not in mesh.birdc("h1", "show protocols")
        file.chmod(0o600)
        until(router.established, "the session is up")
        _not_told(mesh, value)
        file.write_text(other)
        router.start(65001, [FREE], session=f'authentication md5; password "{other}";')
        until(router.established, "the session is up with another password", 90.0)
    mesh.set("h1", bgp__peer__r1__password_file="")
    mesh.in_use("h1", "peer_r1", "direct;")
    router.start(65001, [FREE])
    until(lambda: _up(mesh), "without a password on both sides the session is up again")
    assert "peer_r1" not in mesh.not_well("h1")


def _not_told(mesh: BgpRun, value: str) -> None:
    """See that h1 uses a password, and that nothing tells it."""
    until(lambda: FREE in mesh.learnt("h1"), "its route is there")
    assert "must belong to root" not in mesh.not_well("h1")
    told = [mesh.exec("h1", f"linkspan {verb}", code=-1) for verb in ("plan", "host list -o json", "status", "events")]
    logs = [path.read_text() for path in mesh.folder.rglob("*.log")]
    records = [(mesh.state("h1") / name).read_text() for name in ("replica.json", "secrets.json", "files.json")]
    assert value not in "".join([*told, *logs, *records])
    assert mesh.clean("h1")


def test_with_ttl_security_only_a_peer_on_the_link_is_heard(mesh: BgpRun, router: Speaker) -> None:
    """One that does not send with a TTL of 255 is not, for it might be anywhere."""
    mesh.set("h1", bgp__peer__r1__ttl_security="true")
    mesh.in_use("h1", "peer_r1", "ttl security on;")
    router.start(65001, [FREE], session="ttl security on;")
    until(lambda: _up(mesh), "with it the session is up")
    router.start(65001, [FREE])
    begun = time.monotonic()
    until(lambda: time.monotonic() - begun > 3 or _up(mesh), "time to try")
    assert not _up(mesh)  # the router itself may take what it sent first for heard


def test_a_peer_that_restarts_keeps_its_routes_for_its_restart_time(mesh: BgpRun, router: Speaker) -> None:
    """One that comes back in time loses nothing; of one that does not, they are swept."""
    graceful = "graceful restart on; graceful restart time {};"
    router.start(65001, [FREE], session=graceful.format(60))
    until(lambda: FREE in mesh.learnt("h1"), "its route is there")
    router.kill()
    until(lambda: not _up(mesh), "the session is down")
    assert FREE in mesh.learnt("h1")
    assert _kept(mesh)
    router.start(65001, [FREE], session=graceful.format(4), again=True)
    until(router.established, "it is back")
    until(lambda: not _kept(mesh), "it has announced all routes")
    assert FREE in mesh.learnt("h1")
    router.kill()
    begun = time.monotonic()
    until(lambda: FREE not in mesh.learnt("h1"), "its route is swept")
    assert time.monotonic() - begun > 3


def test_the_routes_of_a_dead_peer_go_after_the_hold_time(mesh: BgpRun, router: Speaker) -> None:
    """A pulled cable sends no event; only the silence ends the session."""
    mesh.set("h1", bgp__peer__r1__hold="3")
    mesh.in_use("h1", "peer_r1", "hold time 3;")
    router.start(65001, [FREE])
    until(lambda: FREE in mesh.learnt("h1"), "its route is there")
    commands.ip(f"{mesh.name}-switch", ["link set r1 down"])
    until(lambda: FREE not in mesh.learnt("h1"), "its route is gone", 10 * SHARED)


OPEN = "b'\\xff'*16+b'\\0\\x1d\\1\\4'+(65001).to_bytes(2,'big')+b'\\0\\x5a'+bytes((192,0,2,101))+b'\\0'"
MALFORMED = {
    "attributes that are longer than the message": "b'\\xff'*16+b'\\0\\x1b\\2\\0\\0\\xff\\xff\\x40\\1\\1\\0'",
    "an unknown kind of message": "b'\\xff'*16+b'\\0\\x13\\x63'",
    "a length that cannot be": "b'\\xff'*16+b'\\xff\\xff\\2'",
    "no marker": "bytes(64)",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_message_ends_its_own_session_only(mesh: BgpRun, router: Speaker, what: str) -> None:
    """The speaker and its other sessions continue, and no route changes."""
    before, routes = mesh.standing("h1", "mesh_h2"), mesh.learnt("h1")
    program = f"""
import socket as s
c = s.socket(); c.bind(('192.0.2.101', 0)); c.settimeout(10); c.connect(('192.0.2.1', 179))
c.sendall({OPEN}); c.recv(4096); c.sendall(b'\\xff'*16+b'\\0\\x13\\4'); c.sendall({MALFORMED[what]})
data = b''
while d := c.recv(4096): data += d
print(data.rpartition(b'\\xff' * 16)[2][2])
"""
    argv = [*commands.entering(router.namespace), sys.executable, "-c", program]
    until(lambda: "peer_r1" in mesh.birdc("h1", "show protocols"), "h1 waits for its peer")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == "3\n", done.stdout + done.stderr  # NOTIFICATION, RFC 4271 section 4.1
    assert mesh.standing("h1", "mesh_h2").same(before)
    assert mesh.learnt("h1") == routes


def test_a_container_cannot_speak_to_its_hosts_peers(mesh: BgpRun, router: Speaker) -> None:
    """Masqueraded it would have the host's address, and be taken for it."""
    router.start(65001, [])
    until(router.established, "the router listens")
    connect = "import socket; socket.create_connection(({!r}, 179), 1)"
    for target in ("192.0.2.101", "192.0.2.2", "2001:db8:1::101"):
        argv = [*commands.entering(f"{mesh.name}-c1"), sys.executable, "-c", connect.format(target)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if ":" in target:  # the router is h1's peer by its IPv4 address, and would not know this one
            continue
        assert "timed out" in done.stderr, (target, done.stderr)


def test_a_host_of_the_mesh_cannot_announce_what_is_anothers(mesh: BgpRun) -> None:
    """An intruder on h2 speaks for h2's leases, and for no other block, free or not."""
    mesh.run("break", "h2", "agent-kill")
    os.kill(mesh.bird("h2"), 9)
    intruder = Speaker(mesh, "h2", 2)
    try:
        stolen = [block(mesh, "h1"), block(mesh, "h1").replace(".0/24", ".128/25"), FREE, "0.0.0.0/0"]
        intruder.start(64512, [*stolen, block(mesh, "h2")], session="ttl security on; multihop 1;")
        until(intruder.established, "h1 takes it for h2")
        until(lambda: "filtered" in mesh.birdc("h1", "show protocols all mesh_h2"), "it has announced")
        until(lambda: len(re.findall(r"^\S+/\d+", mesh.birdc("h1", "show route filtered"), re.M)) == 4, "all came")
        assert set(mesh.learnt("h1")) == {block(mesh, "h2")}
    finally:
        intruder.stop()
        mesh.run("mend", "h2")
    mesh.meshed(hosts=HOSTS)


def test_wrong_settings_are_refused_by_their_field(mesh: BgpRun) -> None:
    """At the command line, for one host and for all, and nothing changes."""
    before = mesh.host("h1")["settings"]
    for words, said in (
        ("--host h1 bgp.as=0", "bgp.as=0"),
        ("--host h1 bgp.peer.r9.address=nowhere", "bgp.peer.r9.address"),
        ("--host h1 bgp.peer.r9.address=192.0.2.9 bgp.peer.r9.password-file=hush", "bgp.peer.r9.password-file=hush"),
        ("--host h1 bgp.hodl=9", "bgp.hodl is unknown"),
        ("--all bgp.hold=1", "bgp.hold=1"),
        ("--all bgp.peer.rr.as=64512", "bgp.peer.rr.address is missing"),
    ):
        done = mesh.run("exec", "h1", "--", f"linkspan host set {words}", code=1)
        assert said in done.stderr, done.stderr
    assert mesh.host("h1")["settings"] == before


def test_settings_of_all_hosts_come_after_a_hosts_own(mesh: BgpRun) -> None:
    """They are in use on every host that has not its own, and are taken back together."""
    mesh.exec("h1", "linkspan host set --host h2 bgp.hold=20")
    mesh.exec("h1", "linkspan host set --all bgp.hold=33")
    mesh.in_use("h1", "mesh_h2", "hold time 33;")
    mesh.in_use("h2", "mesh_h1", "hold time 20;")
    assert ["bgp.hold", "33"] in [line.split() for line in mesh.exec("h2", "linkspan cluster show").splitlines()]
    mesh.exec("h1", "linkspan host set --all bgp.hold=")
    mesh.in_use("h1", "mesh_h2", "hold time 90;")
    mesh.set("h2", bgp__hold="")
    mesh.in_use("h2", "mesh_h1", "hold time 90;")


def test_hosts_of_different_as_are_a_mesh_too(mesh: BgpRun) -> None:
    """By eBGP, with each other's numbers."""
    mesh.set("h2", bgp__as="4200000001")
    until(lambda: "AS4200000001i" in mesh.birdc("h1", "show route"), "h1 has the route from the other AS")
    mesh.meshed(hosts=HOSTS)
    assert mesh.pings("c1", mesh.address("c2"))
    mesh.set("h2", bgp__as="")
    until(lambda: "AS4200000001" not in mesh.birdc("h1", "show route"), "one AS again")
    mesh.meshed(hosts=HOSTS)


@contextlib.contextmanager
def listening(lab: BgpRun, host: str) -> Iterator[int]:
    """Have another program at port 179 of all of a host's addresses; gives its pid."""
    program = "import socket,time; s=socket.create_server(('', 179)); print('up', flush=True); time.sleep(600)"
    argv = [*commands.entering(f"{lab.name}-{host}"), sys.executable, "-c", program]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        try:
            yield process.pid
        finally:
            process.kill()


def test_another_speaker_at_port_179_is_named_with_its_pid(mesh: BgpRun) -> None:
    """If it uses the same address the network is refused, and created once the other speaker is gone."""
    mesh.delete("demo")
    until(lambda: not mesh.bird("h1"), "h1's speaker is gone")
    create = "linkspan network create again --pool 10.60.0.0/16 --backend bgp"
    with listening(mesh, "h1") as pid:
        said = mesh.run("exec", "h1", "--", create, code=1).stderr
        assert f"port 179 of 0.0.0.0, which BGP needs, is in use by process {pid} (" in said
        assert "again" not in mesh.exec("h1", "linkspan network list")
    mesh.exec("h1", create)
    until(lambda: mesh.bird("h1"), "the speaker runs")
