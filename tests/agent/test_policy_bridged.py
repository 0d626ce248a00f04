"""Policies on a bridge: frames between its containers pass the rules, forged and broadcast ones as well."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.addresses import link_local, mac
from support.agent.agent_host import run
from support.agent.traffic import answers, inside, send_frame, serving
from support.agent.yard import Yard, yard_in
from support.polling import HEALED_WITHIN, until

ONE = "policy: web\nselect: {name: x-b}\ningress:\n- from: [{labels: {pod: a}}]\n"
NOBODY = "policy: web\nselect: {name: x-b}\ningress: []\n"


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """Return the host of this file's tests, whose networks are bridges."""
    with yard_in(tmp_path_factory.mktemp("bridged"), "bridged") as made:
        yield made


@pytest.fixture(autouse=True)
def _clean(yard: Yard) -> Iterator[None]:
    yield
    yard.apply("")


def _filtered(yard: Yard, bridge: str) -> list[int]:
    """Return whether a bridge's frames pass the rules of IPv4 and IPv6."""
    (link,) = json.loads(run("ip", "-j", "-d", "link", "show", bridge, netns=yard.host.netns))
    return [link["linkinfo"]["info_data"][key] for key in ("nf_call_iptables", "nf_call_ip6tables")]


def _mac(yard: Yard, name: str) -> str:
    (link,) = json.loads(run("ip", "-j", "link", "show", "eth0", netns=yard.netns[name]))
    return str(link["address"])


@contextlib.contextmanager
def _hearing(yard: Yard, name: str) -> Iterator[socket.socket]:
    """Return a UDP socket of a container at port 90, which hears what comes within ten seconds."""
    with inside(yard.netns[name]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hearing:
        hearing.bind(("", 90))
        hearing.settimeout(10)
        yield hearing


def _say(yard: Yard, name: str, address: str, words: bytes) -> None:
    """Send a datagram to port 90 of an address."""
    with inside(yard.netns[name]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as saying:
        saying.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        saying.sendto(words, (address, 90))


def _datagram(source_mac: str, target_mac: str, source: str, target: str, words: bytes) -> bytes:
    """Return a frame with a UDP datagram for port 90."""
    udp = struct.pack("!HHHH", 90, 90, 8 + len(words), 0) + words
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", 0xFFFF - ((total & 0xFFFF) + (total >> 16))) + head[12:]
    return mac(target_mac) + mac(source_mac) + b"\x08\x00" + head + udp


def test_only_a_bridge_with_policies_pays(yard: Yard) -> None:
    """A policy of one network leaves the others' bridges as they are; without it the first one is as before."""
    yard.apply("policy: web\nselect: {network: x, name: x-b}\ningress: []\n")
    assert not answers(yard.netns["x-a"], yard.ips["x-b"][4], 80)
    assert (_filtered(yard, "ls-x"), _filtered(yard, "ls-y")) == ([1, 1], [0, 0])
    assert "nf_call_iptables 1 nf_call_ip6tables 1" in yard.host.cli("plan")
    assert yard.host.differences() == []
    yard.apply("")
    assert _filtered(yard, "ls-x") == [0, 0]
    assert answers(yard.netns["x-a"], yard.ips["x-b"][4], 80)


def test_a_bridge_that_somebody_excepts_is_filtered_again(yard: Yard) -> None:
    """The switch is an object as any other: it is healed."""
    yard.apply(NOBODY)
    run("ip", "link", "set", "ls-x", "type", "bridge", "nf_call_iptables", "0", netns=yard.host.netns)
    until(lambda: _filtered(yard, "ls-x") == [1, 1], "it is on again", HEALED_WITHIN)
    assert not answers(yard.netns["x-a"], yard.ips["x-b"][4], 80)


def test_a_container_is_refused_at_once_and_trace_names_the_policy(yard: Yard) -> None:
    """As between routed networks: no client waits for a timeout."""
    yard.apply(NOBODY)
    with inside(yard.netns["x-a"]), pytest.raises(OSError, match="No route"):
        socket.create_connection((yard.ips["x-b"][4], 80), timeout=10)
    assert "policy web line 1" in str(yard.host.json("trace", "x-a", "x-b", "--port", "80", code=3))


def test_link_local_addresses_are_under_the_same_policies(yard: Yard) -> None:
    """Each container on a bridge with IPv6 has one; who is allowed may use it, and others may not."""
    address = link_local(mac(_mac(yard, "x-b"))).address

    def reaches(name: str) -> bool:
        with inside(yard.netns[name]), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as client:
            client.settimeout(1)
            try:
                client.connect((address, 80, 0, socket.if_nametoindex("eth0")))
            except OSError:
                return False
        return True

    for name in ("x-a", "x-c"):  # the kernel looks for duplicates of such an address first, for a second or two
        until(lambda name=name: reaches(name), f"{name} reaches it")
    yard.apply(ONE)
    assert reaches("x-a")
    assert not reaches("x-c")
    yard.apply("policy: web\nselect: {name: x-b}\ningress:\n- from: [outside]\n")
    assert not reaches("x-a"), "a neighbour is not outside"


def test_broadcasts_and_frames_to_no_address_of_its_own_reach_no_container_under_ingress(yard: Yard) -> None:
    """Neither by the address of the frame nor by that of the packet; a container under no policy hears them."""
    yard.apply(ONE)
    sender, address = _mac(yard, "x-c"), yard.ips["x-c"][4]
    with _hearing(yard, "x-b") as closed, _hearing(yard, "x-a") as open_:
        _say(yard, "x-c", "10.211.255.255", b"broadcast")
        send_frame(yard.netns["x-c"], "eth0", _datagram(sender, _mac(yard, "x-b"), address, "255.255.255.255", b"all"))
        send_frame(yard.netns["x-c"], "eth0", _datagram(sender, _mac(yard, "x-b"), address, "224.0.0.1", b"group"))
        assert open_.recv(64) == b"broadcast"
        _say(yard, "x-a", yard.ips["x-b"][4], b"allowed")
        assert closed.recv(64) == b"allowed"


def test_a_container_under_egress_opens_no_way_to_its_neighbours_by_a_broadcast(yard: Yard) -> None:
    """It may talk to the outside, where a broadcast's address is; a neighbour that answers would open the way back."""
    sender = _mac(yard, "x-b")
    with _hearing(yard, "x-a") as neighbour:
        yard.apply("policy: out\nselect: {name: x-b}\negress:\n- to: [outside]\n")
        for address in ("255.255.255.255", "224.0.0.1"):
            _say(yard, "x-b", address, b"closed")
            frame = _datagram(sender, _mac(yard, "x-a"), yard.ips["x-b"][4], address, b"closed")
            send_frame(yard.netns["x-b"], "eth0", frame)
        _say(yard, "x-b", yard.ips["x-a"][4], b"refused")
        _say(yard, "x-c", "10.211.255.255", b"open")
        assert neighbour.recv(64) == b"open"


def test_a_forged_source_does_not_pass_for_an_allowed_one(yard: Yard) -> None:
    """The guard drops a frame with another container's address before any rule of policies sees it."""
    yard.apply(ONE)
    allowed, target = yard.ips["x-a"][4], yard.ips["x-b"][4]
    with _hearing(yard, "x-b") as closed:
        for source in (_mac(yard, "x-c"), _mac(yard, "x-a")):
            send_frame(yard.netns["x-c"], "eth0", _datagram(source, _mac(yard, "x-b"), allowed, target, b"forged"))
        _say(yard, "x-a", target, b"real")
        assert closed.recv(64) == b"real"


def test_a_new_container_on_a_new_bridge_is_under_its_policies_at_once(yard: Yard) -> None:
    """The bridge is made with the network's first container here, after the policy."""
    yard.apply("policy: new\nselect: {labels: {pod: new}}\ningress: []\n")
    yard.host.network("fresh", "10.214.0.0/16")
    one, other = yard.host.world.namespace(), yard.host.world.namespace()
    try:
        found = yard.host.attach(one, "fresh", name="new", labels={"pod": "new"})
        yard.host.attach(other, "fresh", name="old")
        with serving(one, 80):
            assert not answers(other, found["addresses"][0].partition("/")[0], 80)
        assert yard.host.differences() == []
    finally:
        for netns in (one, other):
            yard.host.detach(netns)
        yard.host.cli("network", "delete", "fresh")


def test_a_restart_of_the_agent_takes_no_guard_of_a_port_away(yard: Yard) -> None:
    """The ports under ingress stay in their set while the new agent takes over."""
    yard.apply(NOBODY)
    told = yard.folder / "monitored"
    command = ["ip", "netns", "exec", yard.host.netns, "nft", "monitor", "elements"]
    with told.open("w") as file, subprocess.Popen(command, stdout=file) as monitor:
        try:
            until(lambda: _marked(yard, told, "begins"), "the monitor sees what is changed")
            yard.host.restart()
            yard.host.cli("policy", "list")
            until(lambda: _marked(yard, told, "ends"), "the monitor has seen all")
        finally:
            monitor.terminate()
            run("nft", "delete", "table", "inet", "marks", netns=yard.host.netns, check=False)
    gone = [line for line in told.read_text().splitlines() if line.startswith("delete element bridge linkspan")]
    assert gone == []
    assert not answers(yard.netns["x-a"], yard.ips["x-b"][4], 80)


def _marked(yard: Yard, told: Path, name: str) -> bool:
    """Change a set that no agent has, and return whether the monitor has told of it."""
    for words in ("add table inet marks", f"add set inet marks {name} {{ type inet_service; }}"):
        run("nft", *words.split(" "), netns=yard.host.netns)
    for verb in ("add", "delete"):
        run("nft", verb, "element", "inet", "marks", name, "{ 1 }", netns=yard.host.netns)
    return f"inet marks {name}" in told.read_text()


@pytest.mark.parametrize("staged", [False, True])
def test_an_allowed_connection_outlives_a_policy_that_was_staged_first(yard: Yard, staged: bool) -> None:
    """Rules know no connection that was open before they saw its bridge: an apply says so, and staging avoids it."""
    file = yard.folder / "bridged.yaml"
    file.write_text(ONE)
    with yard.connected("x-a", 91) as (client, accepted):
        if staged:
            yard.host.cli("policy", "apply", "--stage", str(file))
            for one, other in ((client, accepted), (accepted, client)):  # each end sends, and the rules see it
                one.sendall(b"still")
                assert other.recv(16) == b"still"
            assert yard.host.json("policy", "enforce", "web")["warnings"] == []
            client.sendall(b"there")
            assert accepted.recv(16) == b"there"
        else:
            assert "open connections" in str(yard.host.json("policy", "apply", str(file))["warnings"])
            client.sendall(b"gone")
            with pytest.raises(ConnectionResetError):
                client.recv(16)
