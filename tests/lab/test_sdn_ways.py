"""SDN by one switch: migrations there and back, a switch reached over TCP and TLS, and one that does not answer."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.kernel.drivers.openflow import OpenFlowDriver
from linkspan.lab import record, switches
from linkspan.lab.sockets import inside
from support.certificates import Authority
from support.lab.migration_runs import HOSTS, Flows
from support.lab.sdn_runs import SdnRun
from support.polling import HEALED_WITHIN, until
from support.routers import frr_router
from support.routers.frr_router import FrrRouter

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
    """No pair loses more than a second; with only the tunnel there is no flow of ours, and no route to the gateway."""
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


def test_a_switch_that_hangs_holds_up_no_other(sdn: SdnRun) -> None:
    """It accepts the connection and is silent: that is reported, and flows deleted elsewhere are back in time."""
    lab = record.load(sdn.name)
    mute = record.Switch(name="sw9")
    lab.switches.append(mute)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(switches.address(lab, mute).removeprefix("unix:"))
        listening.listen(16)
        lab.save()
        try:
            sdn.fail("ctl1", "controller-kill")
            sdn.well("ctl1")
            until(lambda: "sw9" in sdn.switch("sw9")["problem"], "sw9 is named")
            until(lambda: [one["device"] for one in sdn.controller(path="/diff")["unknown"]] == ["sw9"], "no other is")
            for path, rows in (("/flows", "flows"), ("/plan", "plan")):
                found = sdn.controller(path=path)
                assert [one["device"] for one in found["unknown"]] == ["sw9"]
                assert {one.get("switch", one.get("device")) for one in found[rows]} == {"sw1"}
            before = sdn.ours("sw1")
            for _ in range(3):
                sdn.ofctl("del-flows", "sw1", "cookie=0x4c53000000000000/0xffff000000000000")
                until(lambda: sdn.ours("sw1") == before, "the flows are back", HEALED_WITHIN)
        finally:
            sdn.fail("ctl1", "controller-kill")
            lab = record.load(sdn.name)
            lab.switches = [one for one in lab.switches if one.name != "sw9"]
            lab.save()
            sdn.well("ctl1")
    until(sdn.settled, "the switch has all flows")


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


def test_a_flow_that_the_switch_refuses_is_named(sdn: SdnRun) -> None:
    """With the switch's own reason: all of a batch fails for it."""
    driver = OpenFlowDriver("sw1", f"unix:{sdn.folder}/ovs/sw1.mgmt", {})
    good = next(iter(driver.observe(0)))
    bad = msgspec.structs.replace(good, table=103, priority=3, actions="group:77")
    (error,) = driver.apply([bad], ()).values()
    assert "switch sw1" in error.message
    assert "refuses a flow (OFPBAC_BAD_OUT_GROUP): table=103 priority=3" in error.message


@pytest.mark.skipif(bool(frr_router.missing()), reason="needs FRR and openssh-server: apt install them")
def test_an_underlay_of_a_router_carries_containers(tmp_path: Path) -> None:
    """The controller gives FRR the routes to prefixes, and packets follow them; the switch needs no flow for that."""
    mac = "02:00:00:00:00:fe"
    sdn = SdnRun()
    for path in (tmp_path, *list(tmp_path.parents)[:2]):
        path.chmod(0o755)  # FRR's user looks for its sockets there
    router = FrrRouter(tmp_path, f"{sdn.name}-frr")
    try:
        sdn.run("up", f"--backend sdn --hosts 2 --containers-per-host 0 --opt gateway=192.0.2.254 --opt mac={mac}")
        switch = record.load(sdn.name).switch
        router.namespace(mac)
        router.daemons()
        for words in (f"-n {router.name} link set eth1 netns {switch}", f"-n {switch} link set eth1 up"):
            subprocess.run(["ip", *words.split()], check=True)
        sdn.vsctl("add-port", "sw1", "eth1")
        (sdn.folder / "ctl1" / "controller.toml").write_text(f'[routers]\nr1 = "vtysh:{tmp_path}/run"\n')
        sdn.fail("ctl1", "controller-kill")
        sdn.well("ctl1")
        for host, name in (("h1", "c1"), ("h2", "c2")):
            sdn.container(host, name)
        until(lambda: sdn.pings("c1", sdn.address("c2")), "c1 reaches c2 by the router")
        block = sdn.blocks("h2", "demo")[0]
        assert f"ip route {block} 192.0.2.2 tag 19539" in router.vtysh("show running-config")
        assert sdn.ours("sw1") == set()
        assert sdn.controller()["routers"][0]["state"] == "ok"
    finally:
        router.stop()
        sdn.run("down")
