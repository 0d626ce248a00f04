"""A cluster whose segment is a switch of Open vSwitch, with the kernel's data path, programmed by a real controller."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import msgspec

from linkspan.controller.controller import Controller
from linkspan.controller.settings import Settings
from linkspan.core.addresses import mac_text
from linkspan.core.model import Network
from linkspan.kernel.drivers.openflow import OpenFlowDriver
from linkspan.lab.switches import SCHEMA
from linkspan.store.records import BlockRecord, block_key, lease_key
from support.netns.overlay import Cluster
from support.polling import eventually, explained, until

SWITCH = "sw1"
PATIENCE = 90.0
"""Seconds: all is emulated, and each command that a controller starts costs a third of one."""


class KernelSwitch:
    """Open vSwitch in the namespace of a cluster's segment, with a port for each host."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        folder.mkdir()
        (folder / "log").touch()
        names = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
        self._environment = os.environ | dict.fromkeys(names, str(folder))
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.address = f"unix:{folder / SWITCH}.mgmt"
        self.driver = OpenFlowDriver(SWITCH, self.address, {})
        """A way to look at it that is not the controller's."""
        ports = [f"p{host.number}" for host in cluster.hosts]
        cluster.world.sh("sw", "\n".join(f"ip link set {port} nomaster" for port in ports))
        self.run("ovsdb-tool", "create", str(folder / "conf.db"), SCHEMA)
        database = folder / "db.sock"
        self._start("ovsdb-server", str(folder / "conf.db"), f"--remote=punix:{database}")
        until(database.exists, "the database serves", PATIENCE)
        self._start("ovs-vswitchd", f"unix:{database}", f"--unixctl={folder / 'ctl'}")
        words = ["add-br", SWITCH, "--", "set", "bridge", SWITCH, "datapath_type=system"]
        for port in ports:
            words += ["--", "add-port", SWITCH, port]
        self.run("ovs-vsctl", f"--db=unix:{database}", f"--timeout={PATIENCE:.0f}", *words)

    def asked(self, *words: str) -> str:
        """Ask the daemon itself."""
        return self.run("ovs-appctl", f"--target={self.folder / 'ctl'}", *words)

    def run(self, *argv: str) -> str:
        """Run one of Open vSwitch's commands beside it; return what it prints."""
        with self.cluster.world.entered("sw"):
            done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}{(self.folder / 'log').read_text()}"
        return done.stdout

    def _start(self, *argv: str) -> None:
        with self.cluster.world.entered("sw"), (self.folder / "log").open("a") as log:
            self._daemons.append(
                subprocess.Popen([*argv, "--no-chdir"], env=self._environment, stdout=log, stderr=log)
            )

    def close(self) -> None:
        """End the daemons; the kernel's data path goes with the namespace."""
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()

    def counted(self, kind: str) -> int:
        """Return how many packets flows of a kind have taken."""
        self.driver.look()
        return sum(one.packets for one in self.driver.counted.values() if one.flow.kind == kind)


def macs(cluster: Cluster) -> None:
    """Have each host say which MAC it has on the segment, as an agent does."""
    for host in cluster.hosts:
        with cluster.world.entered(host.name), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as asked:
            asked.bind(("eth0", 0))
            mac = mac_text(asked.getsockname()[4])
        assert host.host.underlay is not None
        host.host = msgspec.structs.replace(
            host.host, underlay=msgspec.structs.replace(host.host.underlay, mac=mac)
        )


async def programmed(switch: KernelSwitch, network: Network) -> None:
    """Run a controller until the switch has the flows of all hosts, and end it: what it put stays."""
    folder = switch.folder / "controller"
    store = folder / "store"
    store.mkdir(parents=True)
    settings = Settings(store=f"sqlite://{store}", state_dir=str(folder), switches={SWITCH: switch.address})
    controller = Controller(settings, "ctl")
    await controller.start()
    try:
        records: dict[str, bytes | msgspec.Struct] = {f"networks/{network.name}": network}
        for host in switch.cluster.hosts:
            records[f"hosts/{host.host.id}"] = host.host
            lease = host.lease(network)
            records[lease_key(network.name, host.host.id)] = lease
            owned = BlockRecord(host.host.id, time.time())
            records |= {block_key(network.name, one): owned for one in lease.prefixes}
        await controller.replica.write(records)
        (one,) = controller.switches
        with explained(lambda: f"{controller.where}, {controller.problems()}"):
            await eventually(
                lambda: len(controller.where.places) >= len(switch.cluster.hosts) and one.ready and _same(controller),
                "the switch has the flows of all hosts",
                PATIENCE,
            )
    finally:
        await controller.stop()


def _same(controller: Controller) -> bool:
    """Return whether the switch was given all that follows from what is known now."""
    (one,) = controller.switches
    return {flow.key for flow in controller.wanted[SWITCH]} <= {flow.key for flow in one.flows}
