"""Encrypted networks where the host around them is not as it should be: strangers, others' devices, no underlay."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.addresses import mac, prefix
from linkspan.ipip_endpoint import _checksum
from linkspan.kernel.io import vici
from linkspan.lab import agents, record, sockets
from support.lab.ipsec_runs import IpsecRun
from support.lab.underlay_capture import Echoes
from support.polling import until

DEVICES = {"wireguard": "lswg", "ipsec": "ipsec0"}
STRANGER = "198.51.100.7"


@pytest.fixture(scope="module", params=DEVICES)
def cluster(request: pytest.FixtureRequest) -> Iterator[IpsecRun]:
    """Give three hosts whose network is encrypted in user space."""
    found = IpsecRun()
    try:
        found.run("up", f"--backend {request.param}")
        found.reaches("c1", "c3")
        yield found
    finally:
        found.run("down")


def _device(cluster: IpsecRun) -> str:
    return DEVICES[cluster.network()["backend"]]


def _mac(cluster: IpsecRun, host: str) -> bytes:
    return mac(json.loads(cluster.ip(host, "-j link show eth0"))[0]["address"])


def _echo(source: str, target: str) -> bytes:
    """Return an echo request as an IPv4 packet."""
    message = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"in clear"
    message = message[:2] + _checksum(message) + message[4:]
    addresses = prefix(source).packed + prefix(target).packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0, 64, 1, 0) + addresses
    return header[:10] + _checksum(header) + header[12:] + message


def test_what_comes_in_clear_reaches_no_container(cluster: IpsecRun) -> None:
    """From the underlay, whosever address it has; the outside is reached, and the agent need not run for that."""
    target, echoes = cluster.address("c1"), Echoes(f"{cluster.name}-c1")
    with sockets.inside(record.load(cluster.name).switch):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    try:
        with wire:
            wire.bind(("h1", 0))
            cluster.run("break", "h1", "agent-kill")
            for source in (STRANGER, "192.0.2.3", cluster.address("c2"), cluster.address("c1")):
                frame = _mac(cluster, "h1") + _mac(cluster, "h3") + b"\x08\x00" + _echo(source, target)
                wire.send(frame)
        cluster.reaches("c2", "c1")  # what came before has been worked off
        assert set(echoes.look()) == {cluster.address("c2")}
        assert cluster.pings("c1", "192.0.2.3"), "answers to what was masqueraded come in"
        assert cluster.pings("h1", target), "the host reaches its own"
        # Without the rule a stranger's would come through: the test can fail.
        cluster.inside("h1", "nft delete chain inet linkspan sealed_in")
        with sockets.inside(record.load(cluster.name).switch):
            again = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with again:
            again.bind(("h1", 0))
            again.send(_mac(cluster, "h1") + _mac(cluster, "h3") + b"\x08\x00" + _echo(STRANGER, target))
        until(lambda: STRANGER in echoes.look(), "the stranger's packet comes through")
    finally:
        cluster.run("mend", "h1")
        echoes.close()
    until(lambda: "drop" in cluster.inside("h1", "nft list chain inet linkspan sealed_in"), "the rule is back")
    cluster.well()


def test_another_s_device_with_our_name_is_named_and_left_alone(cluster: IpsecRun) -> None:
    """No route leads into it, and it stays as it is; everything is ok once it is gone."""
    device = _device(cluster)
    cluster.run("break", "h3", "agent-kill")
    cluster.run("break", "h3", "helper-kill")
    with contextlib.suppress(AssertionError):
        cluster.ip("h3", f"link del {device}")  # ours, where it outlives its helper
    cluster.ip("h3", f"link add {device} type bridge")
    cluster.ip("h3", f"link set {device} up")
    cluster.run("mend", "h3")
    until(lambda: device in _drift(cluster, "h3"), f"h3 tells of {device}")
    assert f"link del {device}" in _drift(cluster, "h3")
    assert f"dev {device}" not in cluster.ip("h3", "route show proto 76")
    assert "bridge" in cluster.ip("h3", f"-d link show {device}")
    assert "10.244." not in cluster.ip("h3", f"addr show dev {device}")
    assert cluster.silent("c3", cluster.address("c1"))
    cluster.ip("h3", f"link del {device}")
    cluster.reaches("c3", "c1")
    cluster.well()


def _drift(cluster: IpsecRun, host: str) -> str:
    return " ".join(cluster.status(host)["drift"])


def test_an_underlay_that_is_gone_is_named_and_waited_for(cluster: IpsecRun) -> None:
    """The agent lives on, begins without it, and continues when it is back."""
    cluster.ip("h3", "link set eth0 down")
    cluster.ip("h3", "link set eth0 name away")
    cluster.told("h3", "no underlay")
    cluster.told("h3", "underlay interface eth0 does not exist")
    cluster.fails("h3", "agent-kill")
    lab = record.load(cluster.name)
    agents.start(lab, [lab.host("h3")])
    cluster.told("h3", "no underlay")
    assert cluster.address("c3") in cluster.ip("h3", "route"), "containers are kept"
    cluster.cut_off("c1", "c3")
    cluster.ip("h3", "link set away name eth0")
    cluster.mended("h3")
    cluster.reaches("c1", "c3")
    until(lambda: "underlay" not in cluster.not_well("h3"), "h3 is well")
    cluster.well()


def test_a_removed_host_is_nobody_s_peer(cluster: IpsecRun) -> None:
    """Its key or connection goes with its record, though its helper runs on and sends."""
    cluster.reaches("c3", "c1")
    cluster.run("break", "h3", "agent-kill")
    cluster.exec("h1", "linkspan host remove h3 --force")
    cluster.cut_off("c3", "c1")
    for host in ("h1", "h2"):
        until(lambda host=host: len(_peers(cluster, host)) == 1, f"{host} has one peer")
    cluster.reaches("c1", "c2")


def _peers(cluster: IpsecRun, host: str) -> list[str]:
    """Return what a host's device or daemon has of others."""
    if _device(cluster) == "lswg":
        return cluster.wg(host, "show", "lswg", "peers").split()
    with cluster.asks(host) as asked:
        gone = [one.connection for one in vici.associations(asked) if one.remote == "192.0.2.3"]
        return [*vici.connections(asked), *gone]


def test_nothing_is_left_after_an_uninstall(cluster: IpsecRun) -> None:
    """No process, device, rule, association or file; it is the last that h3 does."""
    device, folder = _device(cluster), cluster.folder / "h3/state"
    helpers = [int(pid) for pid in cluster.inside("h3", f"ip netns pids {cluster.name}-h3").split()]
    cluster.exec("h3", f"linkspan uninstall --yes --force --state-dir {folder}")
    assert device not in cluster.ip("h3", "-br link")
    assert "linkspan" not in cluster.inside("h3", "nft list ruleset")
    assert "40000" not in cluster.ip("h3", "rule")
    routes = cluster.ip("h3", "route show table all")
    assert "proto 76" not in routes
    assert "table 76" not in routes
    assert not folder.exists()
    assert not {"charon-systemd", "wireguard-go"} & set(map(_program, helpers))


def _program(pid: int) -> str:
    """Return what a process runs, '' where it has ended, whoever was to take note of that."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0].rpartition("/")[2]
    except OSError:
        return ""
