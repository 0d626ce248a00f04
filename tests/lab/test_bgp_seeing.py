"""Display of BGP: `linkspan bgp`, status, events, metrics, doctor and trace, with real sessions."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from linkspan.lab import commands, record
from support.lab.bgp_runs import BgpRun, Speaker, speaking
from support.polling import until

HOSTS = ("h1", "h2")
FREE = "10.244.250.0/24"
"""A block that no host has."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[BgpRun]:
    """Give two hosts on one segment."""
    with BgpRun.mesh("--hosts 2", HOSTS) as found:
        yield found


@pytest.fixture
def router(mesh: BgpRun) -> Iterator[Speaker]:
    """Give a router that is h1's peer ``tor``, and leave h1 without it at the end."""
    mesh.set("h1", bgp__peer__tor__address="192.0.2.101", bgp__peer__tor__as="65001")
    with speaking(mesh) as found:
        yield found
    mesh.call("h1", "PATCH", "/v1/hosts/h1", dict.fromkeys(mesh.host("h1")["settings"], ""))
    until(lambda: "peer_" not in mesh.birdc("h1", "show protocols"), "h1 has no peer but h2")


def block(lab: BgpRun, host: str) -> str:
    """Return a host's block."""
    return lab.blocks(host, "demo")[0]


def peers(lab: BgpRun) -> dict[str, Any]:
    """Return h1's sessions by the peer's name."""
    return {one["peer"]: one for one in lab.call("h1", "GET", "/v1/bgp/peers")}


def said(lab: BgpRun, *words: str, code: int = 0) -> str:
    """Run the command line on h1, and return what it prints."""
    environment = os.environ | {"LINKSPAN_SOCKET": str(record.load(lab.name).socket("h1"))}
    argv = [sys.executable, "-m", "linkspan.cli.main", *words]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == code, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def happened(lab: BgpRun, state: str, peer: str) -> list[str]:
    """Return what h1 told of a session that went up or down."""
    lines = said(lab, "events", "-o", "json").splitlines()
    found = [one for one in map(json.loads, lines) if one["type"] == "bgp"]
    return [one["what"] for one in found if one["about"] == {"peer": peer, "state": state}]


def metric(lab: BgpRun, series: str) -> float:
    """Return one of h1's metrics, 0 where it is not counted yet."""
    found = re.findall(rf"^linkspan_bgp_{re.escape(series)} (\S+)$", lab.call("h1", "GET", "/metrics"), re.M)
    return float(found[0]) if found else 0.0


def test_session_that_is_up(mesh: BgpRun) -> None:
    """Of an established session state, since when and counts are reported, and that it is ok."""
    h2 = peers(mesh)["h2"]
    assert (h2["state"], h2["mesh"], h2["address"], h2["remote_as"]) == ("established", True, "192.0.2.2", 64512)
    assert [h2[what] for what in ("sent", "received", "accepted", "filtered")] == [1, 1, 1, 0]
    assert h2["since"] is not None
    assert "established" in said(mesh, "bgp", "explain", "h2")
    until(lambda: happened(mesh, "up", "h2"), "it was told that the session is up")
    assert mesh.status("h1")["bgp"] == {"sessions": 1, "routers": [], "down": [], "limited": [], "warnings": []}
    checks = mesh.call("h1", "GET", "/v1/doctor")
    assert [c["status"] for c in checks if c["check"].startswith("BGP")] == ["ok"]


def test_routes_of_a_peer(mesh: BgpRun) -> None:
    """A received route is reported with its peer and next hop, a sent one without a next hop."""
    (route,) = mesh.call("h1", "GET", "/v1/bgp/routes?peer=h2")
    assert (route["prefix"], route["peer"], route["best"]) == (block(mesh, "h2"), "h2", True)
    assert route["next_hops"] == [{"address": "192.0.2.2", "device": "eth0"}]
    (sent,) = mesh.call("h1", "GET", "/v1/bgp/routes?peer=h2&sent=1")
    assert sent["prefix"] == block(mesh, "h1")
    assert block(mesh, "h2") in said(mesh, "bgp", "routes")


def test_unknown_peer_is_refused_with_those_there_are(mesh: BgpRun) -> None:
    """A word that names no peer is an error that lists the peers."""
    assert "h2" in subprocess.run(
        [sys.executable, "-m", "linkspan.cli.main", "bgp", "explain", "nobody"],
        env=os.environ | {"LINKSPAN_SOCKET": str(record.load(mesh.name).socket("h1"))},
        capture_output=True, text=True, check=False,
    ).stderr  # fmt: skip


def test_what_is_filtered_is_told_by_rule(mesh: BgpRun, router: Speaker) -> None:
    """Each rule that refused a prefix is named, and counted by BIRD itself."""
    router.start(65001, [FREE, "0.0.0.0/0", "172.16.0.0/24", block(mesh, "h1"), "10.244.0.0/16"])
    until(lambda: peers(mesh).get("tor", {}).get("received") == 5, "all has come")
    tor = peers(mesh)["tor"]
    assert (tor["accepted"], tor["filtered"], tor["local_as"], tor["remote_as"]) == (1, 4, 64512, 65001)
    assert tor["filtered_by"] == {"own prefix": 1, "wider than a block": 1, "outside the pools": 2}
    refused = mesh.call("h1", "GET", "/v1/bgp/routes?filtered=1")
    assert {route["prefix"]: route["filtered_by"] for route in refused} == {
        "0.0.0.0/0": "outside the pools",
        "172.16.0.0/24": "outside the pools",
        block(mesh, "h1"): "own prefix",
        "10.244.0.0/16": "wider than a block",
    }
    assert "4 (1 own prefix, 1 wider than a block, 2 outside the pools)" in said(mesh, "bgp", "peers")
    assert metric(mesh, 'session_up{peer="tor"}') == 1
    assert metric(mesh, 'prefixes_filtered{peer="tor"}') == 4


def test_what_a_host_of_the_mesh_may_not_give(mesh: BgpRun) -> None:
    """A host that announces what it has no lease of is reported by that rule."""
    extra = mesh.state("h2") / "bgp/peers/zz.conf"
    extra.write_text(f"protocol static {{ ipv4; route {FREE} blackhole; }}\n")
    try:
        mesh.birdc("h2", "configure")
        until(lambda: peers(mesh)["h2"]["filtered_by"] == {"not in its leases": 1}, "h1 has refused it")
    finally:
        extra.unlink()
        mesh.birdc("h2", "configure")


def test_session_that_is_down(mesh: BgpRun, router: Speaker) -> None:
    """It is reported by the list, by status, doctor, metrics and an event, each with the reason."""
    router.start(65001, [FREE])
    until(lambda: peers(mesh).get("tor", {}).get("state") == "established", "the session is up")
    until(lambda: happened(mesh, "up", "tor"), "it was told that the session is up")
    drops = metric(mesh, 'session_drops_total{peer="tor"}')
    router.kill()
    until(lambda: "TCP refused" in peers(mesh)["tor"]["why"], "it is down")
    until(lambda: happened(mesh, "down", "tor"), "it was told that the session is down")
    told = said(mesh, "bgp", "explain", "tor", code=3)
    assert "nobody listens at 192.0.2.101 port 179" in told
    assert "TCP connection to port 179: refused" in told
    (down,) = mesh.status("h1")["bgp"]["down"]
    assert (down["peer"], "TCP refused" in down["why"]) == ("tor", True)
    assert "BGP SESSION DOWN" in said(mesh, "status", code=3)
    checks = {c["check"]: c for c in mesh.call("h1", "GET", "/v1/doctor")}
    assert checks["BGP session tor"]["status"] == "fail"
    assert "TCP refused" in checks["BGP session tor"]["detail"]
    assert metric(mesh, 'session_up{peer="tor"}') == 0
    assert metric(mesh, 'session_drops_total{peer="tor"}') == drops + 1


def test_other_password(mesh: BgpRun, router: Speaker) -> None:
    """Two passwords that differ are reported by what the kernel refused; neither is shown anywhere."""
    file = mesh.folder / "password"
    file.write_text("sesame\n")
    file.chmod(0o600)
    mesh.set("h1", bgp__peer__tor__password_file=str(file))
    router.start(65001, [], session='authentication md5; password "open"; ')

    def told() -> str:
        return json.dumps(mesh.call("h1", "GET", "/v1/bgp/explain/tor"))

    until(lambda: "password mismatch: " in told(), "the reason is the password")
    assert str(file) in told()
    assert "sesame" not in told() + said(mesh, "plan") + said(mesh, "events")


def test_trace_names_the_peer_that_a_route_came_from(mesh: BgpRun, router: Speaker) -> None:
    """A hop by a learnt route shows the peer that sent it, and its AS path."""
    router.start(65001, [FREE])
    until(lambda: FREE in mesh.learnt("h1"), "the route is in the kernel")
    found = mesh.call("h1", "GET", "/v1/trace?source=c1&target=10.244.250.9&port=")
    assert any("learnt by BGP from tor, AS path 65001" in hop["detail"] for hop in found["hops"])
    found = mesh.call("h1", "GET", "/v1/trace?source=c1&target=c2&port=")
    assert found["reachable"]
    assert any(f"{block(mesh, 'h2')} via 192.0.2.2" in h["detail"] and "from h2" in h["detail"] for h in found["hops"])


def test_trace_names_the_session_that_brings_no_route(mesh: BgpRun, router: Speaker) -> None:
    """If no route exists, a trace breaks with the reason: nobody announces it, it is filtered, or a session is down."""
    router.start(65001, ["10.244.240.0/20"])
    until(lambda: peers(mesh).get("tor", {}).get("filtered") == 1, "it was filtered")
    query = "/v1/trace?source=c1&target=10.244.250.9&port="
    found = mesh.call("h1", "GET", query)
    assert not found["reachable"]
    assert "tor announces 10.244.240.0/20, but it is filtered: wider than a block" in found["reason"]
    router.start(65001, [])
    until(lambda: peers(mesh)["tor"]["state"] == "established", "the session is up again")
    until(lambda: "no BGP peer announces it (established: h2, tor)" in mesh.call("h1", "GET", query)["reason"], "so")
    router.kill()
    until(lambda: "the BGP session with tor is down: " in mesh.call("h1", "GET", query)["reason"], "it is down")


def test_next_hop_that_is_on_no_link(mesh: BgpRun, router: Speaker) -> None:
    """A route that the kernel does not get says so, and a trace says it too."""
    router.start(65001, [FREE], next_hop="198.51.100.9")
    words = "next hop 198.51.100.9 is on no link of this host"
    until(lambda: peers(mesh).get("tor", {}).get("state") == "established", "the session is up")
    until(lambda: mesh.call("h1", "GET", "/v1/bgp/routes?peer=tor"), "the route has come")
    assert [r["unusable"] for r in mesh.call("h1", "GET", "/v1/bgp/routes?peer=tor")] == [words]
    found = mesh.call("h1", "GET", "/v1/trace?source=c1&target=10.244.250.9&port=")
    assert f"tor announces {FREE} via 198.51.100.9, which is on no link of this host" in found["reason"]


def test_speaker_that_ended(mesh: BgpRun) -> None:
    """A speaker that is started again is counted, and its sessions come back."""
    before, counted = mesh.bird("h1"), metric(mesh, "speaker_restarts_total")
    mesh.run("break", "h1", "helper-kill")
    until(lambda: mesh.bird("h1") not in (0, before), "another speaker runs")
    until(lambda: peers(mesh)["h2"]["state"] == "established", "the session is back")
    until(lambda: metric(mesh, "speaker_restarts_total") == counted + 1, "it is counted")


def test_source_address_that_comes_later(mesh: BgpRun, router: Speaker) -> None:
    """A session whose source address is on no link says so, and begins by itself once the address is there."""
    mesh.set("h1", bgp__peer__tor__source="192.0.2.61")
    until(lambda: "could not listen" in peers(mesh).get("tor", {}).get("why", ""), "the list says so")
    assert "192.0.2.61 is on no link" in said(mesh, "bgp", "explain", "tor", code=3)
    router.start(65001, [])
    mesh.ip("h1", "addr add 192.0.2.61/24 dev eth0")
    words = "another address of this host than 192.0.2.61"  # the router knows 192.0.2.1
    until(lambda: words in mesh.call("h1", "GET", "/v1/bgp/explain/tor")["why"], "it tries, from there")
    mesh.ip("h1", "addr del 192.0.2.61/24 dev eth0")


def test_port_in_use(mesh: BgpRun) -> None:
    """If another program has port 179, each session and the doctor name it with its pid."""
    holder = subprocess.Popen(
        [
            *commands.entering(f"{mesh.name}-h1"), sys.executable, "-c",
            "import socket, time\n"
            "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
            "while True:\n"
            "    try: s.bind(('192.0.2.1', 179)); break\n"
            "    except OSError: time.sleep(0.001)\n"
            "s.listen(); print('held', flush=True); time.sleep(600)",
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    output = holder.stdout
    assert output is not None
    try:

        def held() -> bool:  # the next start of a speaker that died twice waits a second
            if pid := mesh.bird("h1"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return bool(select.select([output], [], [], 0.05)[0])

        until(held, "the other program has the port")
        until(lambda: "port 179" in peers(mesh)["h2"]["why"], "the session says why")
        until(lambda: str(holder.pid) in mesh.call("h1", "GET", "/v1/bgp/explain/h2")["why"], "and names the process")
    finally:
        holder.kill()
        holder.wait()
