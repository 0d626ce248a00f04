"""SDN by one switch: migrations there and back, a switch reached over TCP and TLS, and one that does not answer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from lab_runs import until
from migrating import HOSTS, Flows
from sdn_runs import SdnRun

from certificates import Authority
from linkspan.errors import LinkspanError, Unavailable
from linkspan.kernel.openflow import OpenFlowDriver
from linkspan.lab import record
from linkspan.lab.sockets import inside

pytestmark = pytest.mark.skipif(
    shutil.which("ovs-ofctl") is None, reason="needs Open vSwitch: apt install openvswitch-switch"
)


@pytest.fixture(scope="module")
def sdn() -> Iterator[SdnRun]:
    """Give three hosts at one switch."""
    found = SdnRun()
    try:
        found.run("up", "--backend sdn")
        until(found.settled, "the switch has all flows")
        yield found
    finally:
        found.run("down")


def test_a_network_migrates_to_a_tunnel_and_back(sdn: SdnRun) -> None:
    """No pair loses more than a second; with the tunnel alone no flow of ours is left, nor a route to the gateway."""
    before = {host: sdn.everything(host) for host in HOSTS}
    flows = sdn.ours("sw1")
    with Flows(sdn) as traffic:
        sdn.migrate("vxlan")
        sdn.ended("vxlan")
        sdn.clean()
    traffic.check(1450)
    until(lambda: sdn.ours("sw1") == set(), "the switch has no flow of ours")
    for host in HOSTS:
        assert "169.254.76.1" not in sdn.ip(host, "route") + sdn.ip(host, "neigh")
    with Flows(sdn) as traffic:
        sdn.migrate("sdn")
        sdn.ended("sdn")
        sdn.clean()
    traffic.check(1500)
    until(lambda: sdn.ours("sw1") == flows, "the switch has its flows again")
    assert {host: sdn.everything(host) for host in HOSTS} == before
    assert sdn.json("test")["failed"] == []


@pytest.mark.parametrize("way", ["tcp", "ssl"])
def test_a_switch_is_reached_over_the_network(sdn: SdnRun, tmp_path: Path, way: str) -> None:
    """By TCP, and by TLS with certificates of both sides: flows, ports and notes are read, and a batch is put."""
    authority = Authority(tmp_path / "ca")
    server, client = authority.certificate("server"), authority.certificate("client")
    sdn.vsctl("set-ssl", server.key, server.cert, authority.cert)
    sdn.vsctl("set-controller", "sw1", "ptcp:6653:127.0.0.1", "pssl:6654:127.0.0.1")
    tls = {"private-key": client.key, "certificate": client.cert, "ca-cert": authority.cert}
    address = {"tcp": "tcp:127.0.0.1:6653", "ssl": "ssl:127.0.0.1:6654"}[way]
    driver = OpenFlowDriver("sw1", address, tls)
    try:
        with inside(record.load(sdn.name).switch):
            until(lambda: not driver.probe().why_not, "the switch listens")
            states = list(driver.observe(0))
            assert {port.name for port in driver.ports()} == set(HOSTS)
            assert len(driver.notes) == len(HOSTS)
            assert driver.apply(states[-2:], ()) == {}
            if way == "ssl":
                stranger = Authority(tmp_path / "other")
                pair = stranger.certificate("x")
                files = {"private-key": pair.key, "certificate": pair.cert, "ca-cert": authority.cert}
                with pytest.raises(LinkspanError, match="switch sw1 at ssl:"):
                    OpenFlowDriver("sw1", address, files).ports()
    finally:
        sdn.vsctl("del-controller", "sw1")
        sdn.vsctl("del-ssl")


def test_a_switch_that_is_not_there_is_named(sdn: SdnRun) -> None:
    """With its address, and within the time that a round can wait."""
    nobody = OpenFlowDriver("sw9", f"unix:{sdn.folder}/ovs/sw9.mgmt", {})
    with pytest.raises(Unavailable, match=r"switch sw9 at unix:.*No such file"):
        nobody.ports()


def test_a_bad_flow_changes_nothing_and_is_an_error_of_all(sdn: SdnRun) -> None:
    """A batch is taken whole or not at all."""
    one = record.load(sdn.name)
    driver = OpenFlowDriver("sw1", f"unix:{one.folder}/ovs/sw1.mgmt", {})
    good = next(iter(driver.observe(0)))
    bad = msgspec.structs.replace(good, priority=3, actions="nonsense:1")
    fine = msgspec.structs.replace(good, priority=4, actions="drop")
    failed = driver.apply([fine, bad], ())
    assert set(failed) == {fine.key, bad.key}
    assert fine not in set(driver.observe(0))
