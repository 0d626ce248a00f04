"""WireGuard in the lab: nothing in clear whatever breaks, keys that change on the way, and nobody else gets in."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linkspan.lab import sockets
from support.lab.encrypted_runs import SecretRun
from support.lab.migration_runs import HOSTS, Flows
from support.lab.underlay_capture import Capture, Echoes
from support.polling import until

MTU = 1440
PORT = 51820
_DATA = b"\4\0\0\0"
"""The first bytes of a packet with data (section 5.4.6 of WireGuard's paper)."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SecretRun]:
    """Give three hosts with WireGuard in user space."""
    found = SecretRun()
    try:
        found.run("up", "--backend wireguard")
        yield found
    finally:
        found.run("down")


def _clean(capture: Capture) -> None:
    capture.stop()
    assert capture.count > 0
    assert capture.clear == []


def test_nothing_is_in_clear_from_the_first_packet_on(cluster: SecretRun) -> None:
    """A network is created while its first containers ping, by TCP, UDP and ping, of all sizes; then it is deleted."""
    with cluster.capture() as capture:
        cluster.create("fresh", "10.247.0.0/16", backend="wireguard")
        cluster.run("attach", "h1", "f1", "--network fresh")
        cluster.run("attach", "h2", "f2", "--network fresh")
        with cluster.pinged("f1", "f2"), Flows(cluster, "f1", "f2"):
            until(lambda: cluster.pings("f1", cluster.address("f2")), "f1 reaches f2")
    _clean(capture)
    for name in ("f1", "f2"):
        cluster.run("detach", name)
    cluster.delete("fresh")
    cluster.clean()


def test_the_metrics_have_the_age_of_each_peer_s_handshake(cluster: SecretRun) -> None:
    """By the host's name; peers are pinged all the while, so no age is above the time between two handshakes."""
    found = re.findall(
        r'^linkspan_wireguard_handshake_age_seconds\{peer="(\w+)"\} (\S+)$', cluster.call("h1", "GET", "/metrics"), re.M
    )
    assert {name for name, _ in found} == {"h2", "h3"}
    assert all(-1 < float(age) < 180 for _, age in found)


def test_keys_change_while_packets_flow(cluster: SecretRun) -> None:
    """Two hosts change their keys: no pair loses more than a second, the old keys are gone, and nothing is in clear."""
    before = {host: cluster.key(host) for host in HOSTS}
    with cluster.capture() as capture, cluster.pinged("c1", "c3"), Flows(cluster) as flows:
        said = cluster.exec("h2", "linkspan host rotate-keys")
        cluster.rotated("h3")
        cluster.clean()
    flows.check(MTU)
    _clean(capture)
    after = {host: cluster.key(host) for host in HOSTS}
    assert not any("backend wireguard" in cluster.not_well(host) for host in HOSTS)
    assert after["h1"] == before["h1"]
    assert after["h2"] in said
    assert len({*before.values(), *after.values()}) == 5
    for host in HOSTS:
        peers = cluster.wg(host, "show", "lswg", "peers").split()
        assert {peer[:10] for peer in peers} == {after[other] for other in HOSTS if other != host}
        files = sorted((cluster.folder / host / "state/wireguard").glob("*.key"))
        assert [(file.name, file.stat().st_mode & 0o777) for file in files] == [("private.key", 0o600)]


def test_wireguard_go_is_killed(cluster: SecretRun) -> None:
    """It is started again and is back in time; until then packets go nowhere."""
    with cluster.capture() as capture, cluster.pinged("c1", "c2"), cluster.pinged("c2", "c1"):
        since = time.monotonic()
        cluster.fails("h2", "helper-kill")
        cluster.back(since)
    _clean(capture)
    cluster.clean()


def test_wireguard_go_and_agent_are_killed(cluster: SecretRun) -> None:
    """Nobody is there to repair, and nothing leaves in clear; the agent's next start brings all back in time."""
    with cluster.capture() as capture, cluster.pinged("c1", "c2"), cluster.pinged("c2", "c1"):
        cluster.fails("h2", "agent-kill")
        cluster.fails("h2", "helper-kill")
        until(lambda: cluster.silent("c1", cluster.address("c2")), "c2 is cut off")
        cluster.mended("h2")
        cluster.back(time.monotonic())
    _clean(capture)
    cluster.clean()


def test_routes_or_rules_alone_keep_all_in(cluster: SecretRun) -> None:
    """Without agent and device either is enough: the unreachable routes, or the rule if other routes lead out."""
    out = "route replace default via 192.0.2.1"
    target = cluster.address("c1")
    with cluster.capture() as capture, cluster.pinged("c2", "c1"):
        cluster.fails("h2", "agent-kill")
        cluster.ip("h2", out)
        cluster.ip("h2", "link del lswg")
        until(lambda: cluster.silent("c2", target), "c2 is cut off")
        cluster.ip("h2", "route flush proto 76 root 10.244.0.0/16")
        cluster.ip("h2", f"route add {cluster.address('c2')} dev {_link(cluster, 'h2')} proto 76")
        cluster.ip("h2", "route add 10.244.0.0/24 dev eth0")
        until(lambda: cluster.silent("c2", target), "c2 is cut off")
        assert "drop" in cluster.inside("h2", "nft list chain inet linkspan sealed")
        cluster.ip("h2", "route del 10.244.0.0/24 dev eth0")
        cluster.ip("h2", "route add unreachable 10.244.0.0/16 metric 4294967295 proto 76")
        cluster.inside("h2", "nft flush ruleset")
        until(lambda: cluster.silent("c2", target), "c2 is cut off")
        cluster.ip("h2", "route del default")
        cluster.mended("h2")
        cluster.back(time.monotonic(), "c2", "c1")
    _clean(capture)
    cluster.clean()


def _link(cluster: SecretRun, host: str) -> str:
    found = re.search(r"lsr[0-9a-f]+", cluster.inside(host, "ip -br link"))
    assert found is not None
    return found[0]


def test_forged_sources_wrong_keys_and_replays_get_nothing_through(cluster: SecretRun) -> None:
    """A host that sends with a foreign source, one with an unknown key, and one that replays captured packets."""
    echoes = Echoes(f"{cluster.name}-c1")
    target, mine, theirs = (cluster.address(name) for name in ("c1", "c3", "c2"))
    until(lambda: cluster.pings("c3", target), "c3 reaches c1")
    try:
        cluster.fails("h3", "agent-kill")
        cluster.ip("h3", f"addr add {theirs}/32 dev lswg")
        ping = ["ip", "netns", "exec", f"{cluster.name}-h3", "ping", "-c3", "-i0.1", "-W1", "-I", theirs, target]
        assert subprocess.run(ping, capture_output=True, check=False).returncode != 0
        cluster.ip("h3", f"addr del {theirs}/32 dev lswg")
        assert theirs not in echoes.look()

        seen = len([one for one in echoes.look() if one == mine])
        wrong = cluster.folder / "wrong.key"
        wrong.write_text(subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout)
        cluster.wg("h3", "set", "lswg", "private-key", str(wrong))
        until(lambda: cluster.silent("c3", target), "c3 is cut off")
        assert echoes.look().count(mine) == seen
        cluster.mended("h3")  # where the device's key is put right
        until(lambda: cluster.pings("c3", target), "c3 reaches c1 again")

        cluster.takes_once(echoes, lambda frame: frame[23:24] == b"\x11" and frame[42:46] == _DATA)
    finally:
        echoes.close()
    cluster.clean()


def test_a_peer_that_was_changed_by_hand_is_healed_but_may_roam(cluster: SecretRun) -> None:
    """A peer that is removed comes back; an endpoint that is another by now stays, also over the agent's restart."""
    peers = dict(line.split("\t") for line in cluster.wg("h1", "show", "lswg", "endpoints").splitlines())
    two = next(public for public, place in peers.items() if place.startswith("192.0.2.2"))
    cluster.wg("h1", "set", "lswg", "peer", two, "remove")
    until(lambda: two in cluster.wg("h1", "show", "lswg", "peers"), "the peer is back")
    cluster.clean()
    healed = [one for one in cluster.status("h1")["heals"] if two in one["key"]]
    assert healed
    cluster.ip("h2", "addr add 192.0.2.77/24 dev eth0")
    cluster.wg("h1", "set", "lswg", "peer", two, "endpoint", f"192.0.2.77:{PORT}")
    cluster.restarted("h1")
    cluster.clean()
    assert [one for one in cluster.status("h1")["heals"] if two in one["key"]] == healed
    cluster.ip("h2", "addr del 192.0.2.77/24 dev eth0")
    until(lambda: cluster.pings("c2", cluster.address("c1")), "c2 reaches c1")
    until(lambda: f"192.0.2.2:{PORT}" in cluster.wg("h1", "show", "lswg", "endpoints"), "h2 is seen where it is")


def test_a_key_file_that_is_no_good_is_named(cluster: SecretRun) -> None:
    """Others may read it, another user owns it, it is too short, or missing: peers continue, and the file is named."""
    file = cluster.folder / "h3/state/wireguard/private.key"
    text = file.read_text()

    def tried(*words: str) -> None:
        cluster.told("h3", str(file), *words)
        assert cluster.pings("c3", cluster.address("c1"))

    file.chmod(0o640)
    tried("must belong to root")
    file.chmod(0o600)
    os.chown(file, 65534, -1)
    tried("must belong to root")
    os.chown(file, 0, -1)
    file.write_text("c2hvcnQ=\n")
    tried("its length is wrong")
    kept = file.rename(file.with_name("kept"))
    tried("does not have the private key")
    kept.rename(file)
    file.write_text(text)
    cluster.restarted("h3")
    until(lambda: "wireguard" not in cluster.not_well("h3"), "h3 is well")
    cluster.clean()


def test_two_hosts_with_one_key_are_named_on_both(cluster: SecretRun) -> None:
    """As after a state folder was copied; another key for one of them repairs it."""
    one, other = (cluster.folder / host / "state/wireguard/private.key" for host in ("h1", "h3"))
    cluster.fails("h3", "agent-kill")
    other.write_text(one.read_text())
    cluster.mended("h3")
    for host in HOSTS:
        cluster.told(host, "hosts h1 and h3 have the same WireGuard key", "rotate-keys")
    cluster.rotated("h3")
    for host in HOSTS:
        until(lambda host=host: "the same WireGuard key" not in cluster.not_well(host), f"{host} is well")
    until(lambda: cluster.pings("c3", cluster.address("c1")), "c3 reaches c1")
    cluster.clean()


def test_a_port_that_another_holds_is_named_with_its_holder(cluster: SecretRun) -> None:
    """The setting is taken back, and everything is ok."""
    with sockets.inside(f"{cluster.name}-h3"):
        holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with holder:
        holder.bind(("0.0.0.0", 51999))
        cluster.call("h1", "PATCH", "/v1/hosts/h3", {"wireguard.port": "51999"})
        cluster.told("h3", "UDP port 51999", f"process {os.getpid()}")
    cluster.call("h1", "PATCH", "/v1/hosts/h3", {"wireguard.port": ""})
    cluster.clean()
    until(lambda: cluster.pings("c3", cluster.address("c1")), "c3 reaches c1")


def test_a_key_that_all_share_besides(cluster: SecretRun, tmp_path: Path) -> None:
    """With the same file on all hosts packets pass; no plan, log or status has its content, nor a private key."""
    shared = subprocess.run(["wg", "genpsk"], capture_output=True, text=True, check=True).stdout
    file = tmp_path / "shared.key"
    file.write_text(shared)
    file.chmod(0o600)
    cluster.call("h1", "PATCH", "/v1/hosts", {"wireguard.preshared-key-file": str(file)})
    for host in HOSTS:
        until(
            lambda host=host: "(none)" not in cluster.wg(host, "show", "lswg", "preshared-keys"),
            f"{host} has the shared key",
        )
    cluster.clean()
    until(lambda: cluster.pings("c1", cluster.address("c2")), "c1 reaches c2")
    plan = cluster.exec("h1", "linkspan plan -o commands")
    assert "private-key ***" in plan
    assert "preshared-key ***" in plan
    private = [cluster.folder / host / "state/wireguard/private.key" for host in HOSTS]
    secrets = [shared.strip(), *(file.read_text().strip() for file in private)]
    public = [plan, json.dumps(cluster.status("h1")), *map(cluster.log, HOSTS)]
    arguments = [path.read_text(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if _there(path)]
    store = b"".join(path.read_bytes() for path in (cluster.folder / "store").glob("*"))
    public += [*arguments, store.decode(errors="replace")]
    assert not any(secret in text for secret in secrets for text in public)
    another = subprocess.run(["wg", "genpsk"], capture_output=True, text=True, check=True).stdout
    file.write_text(another)  # of the same length, at the same path: only a look at it shows that
    for host in HOSTS:
        until(
            lambda host=host: another.strip() in cluster.wg(host, "show", "lswg", "preshared-keys"),
            f"{host} has the other shared key",
            60.0,
        )
    for mode, owner in ((0o640, 0), (0o600, 65534)):  # while the agent runs, as with a host's own key
        file.chmod(mode)
        os.chown(file, owner, -1)
        cluster.told("h1", f"{file} must belong to root", f"chmod 600 {file}")
        file.chmod(0o600)
        os.chown(file, 0, -1)
        until(lambda: str(file) not in cluster.not_well("h1"), "the file is root's alone again")
    cluster.call("h1", "PATCH", "/v1/hosts", {"wireguard.preshared-key-file": ""})
    cluster.clean()
    until(lambda: cluster.pings("c1", cluster.address("c2")), "c1 reaches c2")


def _there(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_trace_says_by_what_and_with_which_key(cluster: SecretRun) -> None:
    """Both hosts name the other's key; the MTU is the network's."""
    found: dict[str, Any] = cluster.call("h1", "GET", "/v1/trace?source=c1&target=c2")
    told = {hop["action"]: hop["detail"] for hop in found["hops"]}
    assert found["reachable"]
    assert found["path_mtu"] == MTU
    assert f"by WireGuard for h2, key {cluster.key('h2')}" in told["encrypted"]
    assert f"by WireGuard from h1, key {cluster.key('h1')}" in told["decrypted"]
