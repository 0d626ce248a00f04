"""OpenFlow switches of a lab with backend sdn: real Open vSwitch, with its data path in user space.

A single one is all hosts' switch. Three are a spine, sw1, and two leaves with the hosts, which are also
joined directly: containers' packets use the direct link, and the spine if that is cut. The hosts' own
traffic, which the switches forward by MAC learning, would loop there, so it uses only the spine.

The database server and the switch daemon are the lab's own, in the switches' namespace and the lab's folder:
the machine's own Open vSwitch is not used.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from linkspan.core.errors import Invalid, LinkspanError, NotFound
from linkspan.lab import commands, processes
from linkspan.lab.record import Host, Lab, Switch

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
SPINE = "sw1"
KILLED, DOWN, FLUSH = "switch-kill", "link-down:", "flows-flush"
FAILURES = (KILLED, FLUSH, f"{DOWN}SWITCH")


def require(lab: Lab) -> None:
    """Raise NotFound if switches could not start here."""
    if not lab.switches:
        return
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    for name, package in (("ovs-vswitchd", "openvswitch-switch"), ("ovsdb-server", "openvswitch-switch"),
                          ("ovs-ofctl", "openvswitch-common"), ("ethtool", "ethtool")):  # fmt: skip
        if shutil.which(name, path=path) is None and shutil.which(name) is None:
            raise NotFound(f"{name} is not installed", f"apt install {package}, and leave its service off")


def address(lab: Lab, switch: Switch) -> str:
    """Return the address at which a switch is programmed."""
    return f"unix:{lab.folder / 'ovs' / switch.name}.mgmt"


def leaf(lab: Lab, host: Host) -> str:
    """Return the switch of a host."""
    leaves = [one.name for one in lab.switches[1:]] or [SPINE]
    return leaves[lab.hosts.index(host) % len(leaves)]


def start(lab: Lab) -> None:
    """Start Open vSwitch, and make the switches and the links between them."""
    folder = lab.folder / "ovs"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    commands.run("ovsdb-tool", "create", str(folder / "conf.db"), SCHEMA)
    _daemon(lab, "ovsdb-server", [str(folder / "conf.db"), f"--remote=punix:{folder / 'db.sock'}"])
    _await(folder / "db.sock", "ovsdb-server")
    _vsctl(lab, "--no-wait", "init")
    _vswitchd(lab)
    words: list[str] = []
    for switch in lab.switches:
        words += ["--", "add-br", switch.name, "--", "set", "bridge", switch.name, "datapath_type=netdev"]
    for near, far in _pairs(lab):
        commands.ip(lab.switch, _cable(lab, near, far))
        for one, other in ((near, far), (far, near)):
            words += ["--", "add-port", one, port(one, other)]
    _vsctl(lab, *words)
    _calm(lab)


def _pairs(lab: Lab) -> Iterator[tuple[str, str]]:
    names = [one.name for one in lab.switches]
    yield from ((near, far) for n, near in enumerate(names) for far in names[n + 1 :])


def port(here: str, there: str) -> str:
    """Return the name of a switch's port to another one."""
    return f"{here}-{there}"


def _cable(lab: Lab, near: str, far: str) -> list[str]:
    ends = port(near, far), port(far, near)
    made = f"link add {ends[0]} mtu {lab.mtu} type veth peer name {ends[1]} mtu {lab.mtu}"
    return [made, *(f"link set {end} up" for end in ends)]


def _calm(lab: Lab) -> None:
    """Keep the hosts' own traffic from looping: nothing is flooded over links between leaves."""
    for near, far in _pairs(lab):
        if SPINE not in (near, far):
            for one, other in ((near, far), (far, near)):
                commands.run("ovs-ofctl", "mod-port", _named(lab, one), port(one, other), "no-flood")


def _named(lab: Lab, name: str) -> str:
    return address(lab, next(one for one in lab.switches if one.name == name))


def _vswitchd(lab: Lab) -> None:
    folder = lab.folder / "ovs"
    words = [f"unix:{folder / 'db.sock'}", "--disable-system", "--disable-system-route"]
    _daemon(lab, "ovs-vswitchd", words)
    if not commands.await_(lambda: _answers(lab)):
        raise LinkspanError("ovs-vswitchd does not serve", f"see {folder / 'ovs-vswitchd.log'}")


def _answers(lab: Lab) -> bool:
    """Return whether the daemon has applied the database's content."""
    try:
        asked = f"external_ids:asked={time.monotonic_ns()}"  # do not wait for a command that changes nothing
        _vsctl(lab, "--timeout=2", "set", "open_vswitch", ".", asked)
    except LinkspanError:
        return False
    return True


def _daemon(lab: Lab, name: str, words: list[str]) -> subprocess.Popen[bytes]:
    folder = lab.folder / "ovs"
    dirs = dict.fromkeys(("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"), str(folder))
    env = processes.environment(lab.folder, f"ovs/{name}", **dirs)
    env["PATH"] += ":/usr/sbin"
    return processes.start(lab.switch, "", [name, *words, "--no-chdir"], env, folder / name)


def _await(path: Path, what: str) -> None:
    if not commands.await_(path.exists):
        raise LinkspanError(f"{what} does not start")


def _vsctl(lab: Lab, *words: str) -> str:
    return commands.run("ovs-vsctl", f"--db=unix:{lab.folder / 'ovs' / 'db.sock'}", *words)


def plug(lab: Lab, host: Host) -> None:
    """Plug a host's cable into its switch.

    The data path in user space forwards packets unchanged: a host must not leave checksums to a network card.
    """
    commands.run("ethtool", "-K", "eth0", "tx", "off", netns=host.namespace)
    _vsctl(lab, "--may-exist", "add-port", leaf(lab, host), host.name)


def unplug(lab: Lab, host: Host) -> None:
    """Unplug it."""
    _vsctl(lab, "--if-exists", "del-port", host.name)


def _pids(lab: Lab) -> list[int]:
    return list(processes.of_lab(lab.folder, lambda role, _: role == "ovs/ovs-vswitchd"))


def do(lab: Lab, switch: Switch, failure: str) -> str:
    """Make a switch fail; return what was done. Raises Invalid for an unknown failure."""
    if failure == FLUSH:
        commands.run("ovs-ofctl", "-O", "OpenFlow13", "del-flows", address(lab, switch))
        commands.run("ovs-ofctl", "-O", "OpenFlow13", "add-flow", address(lab, switch), "priority=0,actions=NORMAL")
        return f"every flow of {switch.name} is gone, except the one that makes it a plain switch"
    other = failure.removeprefix(DOWN)
    if failure == KILLED:
        switch.broken.append(failure)
        lab.save()
        processes.kill(lab.folder, lambda: _pids(lab), f"switch {switch.name}")
        return "the switches' daemon is killed: in a lab it is one for all of them"
    if failure.startswith(DOWN) and any(one.name == other for one in lab.switches if one is not switch):
        switch.broken.append(failure)
        lab.save()
        commands.run("ip", "-n", lab.switch, "link", "set", port(switch.name, other), "down")
        return f"the link between {switch.name} and {other} is down"
    raise Invalid(f"a switch has no failure {failure!r}", f"the known ones are {', '.join(FAILURES)}")


def mend(lab: Lab, switch: Switch) -> list[str]:
    """Undo every failure of a switch; returns what was done."""
    done = []
    for failure in switch.broken:
        if failure.startswith(DOWN):
            commands.run(
                "ip", "-n", lab.switch, "link", "set", port(switch.name, failure.removeprefix(DOWN)), "up"
            )
            done.append(f"{failure} is over")
    if not _pids(lab):
        _vswitchd(lab)
        _calm(lab)
        done.append("the switches' daemon is started")
    switch.broken = []
    lab.save()
    return done
