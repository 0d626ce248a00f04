"""A mesh of three hosts with two stacks, with real agents and real speakers, and what goes wrong with them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from support.lab.bgp_runs import BgpRun
from support.lab.lab_runs import LabRun
from support.polling import HEALED_WITHIN, SHARED, until

HOSTS = ("h1", "h2", "h3")


@pytest.fixture(scope="module")
def mesh() -> Iterator[BgpRun]:
    """Give three hosts on one segment, with two stacks."""
    with BgpRun.mesh("--underlay dual") as found:
        yield found


def container(lab: BgpRun, name: str, family: int) -> str:
    """Return a container's address of a family."""
    addresses: list[str] = next(c["addresses"] for c in lab.json("show")["containers"] if c["name"] == name)
    return next(a.partition("/")[0] for a in addresses if (":" in a) == (family == 6))


def test_all_reach_all_without_a_tunnel(mesh: BgpRun) -> None:
    """Both families go by the hosts' own addresses, with the host's address in the network as source."""
    assert mesh.json("test")["failed"] == []
    (block,) = [b for b in mesh.blocks("h2", "demo") if ":" not in b]
    route = mesh.learnt("h1")[block]
    assert (route["gateway"], route["dev"]) == ("192.0.2.2", "eth0")
    own = mesh.host("h1")["leases"][0]["host_address"]
    assert route["prefsrc"] in " ".join(own)
    (block6,) = [b for b in mesh.blocks("h2", "demo") if ":" in b]
    assert mesh.learnt("h1", 6)[block6]["gateway"] == "2001:db8:1::2"
    for host in HOSTS:
        assert mesh.clean(host), host
        assert mesh.status(host)["drift"] == []


def test_an_address_that_nobody_has_goes_nowhere(mesh: BgpRun) -> None:
    """The first host drops a packet to a free address of a block or pool, so it is in no loop."""
    (block,) = [b for b in mesh.blocks("h1", "demo") if ":" not in b]
    for nobody in (block.replace(".0/24", ".99"), "10.244.255.254"):
        said = mesh.run("exec", "h1", "--", f"ip route get {nobody}", code=2).stderr
        assert "No route to host" in said, said


def test_speaker_and_routes_outlive_a_killed_agent(mesh: BgpRun) -> None:
    """The next agent takes the same speaker over, as it is: no session ends, no packet is lost."""
    before = mesh.standing("h1", "mesh_h2")
    with mesh.no_loss("c1", container(mesh, "c2", 4)), mesh.no_loss("c3", container(mesh, "c1", 6)):
        mesh.run("break", "h1", "agent-kill")
        mesh.run("mend", "h1")
        until(lambda: mesh.clean("h1"), "no drift on h1")
    assert mesh.standing("h1", "mesh_h2").same(before)


def test_a_killed_speaker_is_started_again_and_no_packet_is_lost(mesh: BgpRun) -> None:
    """Its own routes and its peers' stay meanwhile (graceful restart), and it takes them up again."""
    before = mesh.bird("h1")
    with mesh.no_loss("c1", container(mesh, "c2", 4)), mesh.no_loss("c3", container(mesh, "c1", 6)):
        mesh.run("break", "h1", "helper-kill")
        until(lambda: mesh.bird("h1") not in (0, before), "another speaker runs")
        until(lambda: mesh.birdc("h1", "show protocols").count("Established") == 2, "sessions are back")
        until(lambda: "recovery" not in mesh.birdc("h1", "show status"), "it has recovered")
    mesh.meshed()
    assert "Process" in [heal["kind"] for heal in mesh.status("h1")["heals"]]


def test_routes_that_somebody_flushed_are_back(mesh: BgpRun) -> None:
    """This holds for the speaker's routes and for ours."""
    before = mesh.learnt("h1").keys()
    mesh.ip("h1", "route flush proto bird")
    until(lambda: mesh.learnt("h1").keys() == before, "routes are back", HEALED_WITHIN)
    assert mesh.pings("c1", container(mesh, "c2", 4))


def test_one_speaker_serves_two_networks_and_goes_with_the_last(mesh: BgpRun) -> None:
    """A second network needs no second speaker, its routes go with it, and those of the first stay."""
    before = [mesh.bird(host) for host in HOSTS]
    mesh.create("second", "10.9.0.0/16", backend="bgp")
    mesh.meshed("second")
    assert [mesh.bird(host) for host in HOSTS] == before
    mesh.delete("second")
    until(lambda: not any(r.startswith("10.9.") for r in mesh.learnt("h1")), "its routes are gone")
    assert len(mesh.learnt("h1")) == 2
    assert mesh.pings("c1", container(mesh, "c2", 4))


def test_exact_addresses_are_announced_alone(mesh: BgpRun) -> None:
    """As /32 and /128, within the time that a new address may take, and withdrawn with their container."""
    mesh.create("exact", "10.8.0.0/24", backend="bgp", ipam="exact")
    mesh.run("attach", "h2", "x1", "--network exact --ip 10.8.0.77")
    until(lambda: mesh.learnt("h1").get("10.8.0.77", {}).get("gateway") == "192.0.2.2", "h1 has the route")
    assert mesh.pings("h1", "10.8.0.77")
    mesh.run("detach", "x1")
    until(lambda: "10.8.0.77" not in mesh.learnt("h1"), "the route is withdrawn")
    mesh.delete("exact")


def test_a_drained_host_withdraws_what_nothing_lives_in(mesh: BgpRun) -> None:
    """Containers there are reached until they are gone; the block's route goes with its last container."""
    (block,) = [b for b in mesh.blocks("h3", "demo") if ":" not in b]
    mesh.run("attach", "h3", "last")
    address = container(mesh, "last", 4)
    mesh.exec("h1", "linkspan host drain h3")
    mesh.run("detach", "c3")
    shut = "(65535,0)"
    until(lambda: shut in mesh.birdc("h1", f"show route {block} all"), "the block is marked GRACEFUL_SHUTDOWN")
    assert mesh.pings("c1", address)
    mesh.run("detach", "last")
    until(lambda: block not in mesh.learnt("h1"), "the block is withdrawn")
    own = mesh.host("h3")["leases"][0]["host_address"][0].partition("/")[0]
    assert own in mesh.learnt("h1")
    mesh.exec("h1", "linkspan host undrain h3")
    until(lambda: block in mesh.learnt("h1"), "the block is announced again")
    assert own not in mesh.learnt("h1")
    mesh.run("attach", "h3", "c3")


def test_a_speaker_that_dies_over_and_over_waits_and_is_told(mesh: BgpRun) -> None:
    """It is not started a hundred times a minute; its routes stay for the restart time, and then they go."""
    deaths, begun, last = 0, time.monotonic(), 0
    while "next start in" not in mesh.not_well("h3"):
        assert time.monotonic() - begun < 120
        if (pid := mesh.bird("h3")) and pid != last:
            os.kill(pid, signal.SIGKILL)
            deaths, last = deaths + 1, pid
    assert mesh.learnt("h3")
    assert "bird ended" in mesh.not_well("h3")
    assert deaths < 10
    mesh.set("h3", bgp__restart_time="8")  # the setting's own is two minutes
    begun = time.monotonic()
    while mesh.learnt("h3"):
        assert time.monotonic() - begun < 120
        if pid := mesh.bird("h3"):
            os.kill(pid, signal.SIGKILL)
    mesh.set("h3", bgp__restart_time="")
    until(lambda: mesh.learnt("h3"), "it is started again in the end", 90 * SHARED)
    mesh.meshed()


def test_uninstall_leaves_nothing_of_the_speaker(mesh: BgpRun) -> None:
    """No process, no file and no route; its peers withdraw what it announced."""
    assert mesh.bird("h3")
    mesh.run("exec", "h3", "--", "linkspan uninstall --force --yes")
    assert not mesh.bird("h3")
    assert mesh.learnt("h3") == {}
    assert not mesh.state("h3").exists()
    until(lambda: len(mesh.learnt("h1")) == 1, "h1 has no route to it any more")


def test_the_last_network_takes_the_speaker_along(mesh: BgpRun) -> None:
    """Nothing of it stays on hosts without a network that needs it."""
    mesh.delete("demo")
    for host in ("h1", "h2"):
        until(lambda host=host: not mesh.bird(host) and not mesh.learnt(host), f"{host} has no speaker")
        until(lambda host=host: mesh.clean(host), f"no drift on {host}")
        assert "peers" not in os.listdir(mesh.state(host) / "bgp")


def test_ipv4_goes_over_an_underlay_of_ipv6_alone(lab: LabRun) -> None:
    """By next hops of the other family (RFC 8950), which trace follows too."""
    lab.run("up", "--backend bgp --underlay v6 --hosts 2")
    until(lambda: "via inet6 2001:db8:1::2" in lab.exec("h1", "ip -4 route"), "the next hop is an IPv6 address")
    assert lab.json("test")["failed"] == []
    assert "reachable" in lab.exec("h1", "linkspan trace c1 c2")
