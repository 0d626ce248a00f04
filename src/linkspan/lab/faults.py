"""`lab break` and `lab mend`: failures of real hosts, caused on purpose, and undone."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable

from linkspan.core.errors import Invalid, LinkspanError, NotFound, counted
from linkspan.core.states.host import LEARNT_METRIC, ROUTE_PROTOCOL
from linkspan.lab import agents, commands, containers, controllers, processes, routers, switches, underlay
from linkspan.lab.record import Host, Lab
from linkspan.lab.underlay import CABLE, PARTITION, STORE_CUT

DOWN = "link-down"
KILLED = "agent-kill"
OURS = re.compile(r"ls[-0-9a-z]")
"""Links of linkspan's (core/states/host.py)."""


def do(lab: Lab, host: Host, failure: str) -> str:
    """Cause a failure; return what was done. Raises Invalid for an unknown failure."""
    if failure.startswith(PARTITION):
        return _partition(lab, host, failure.removeprefix(PARTITION))
    if failure not in FAILURES:
        raise Invalid(f"a host has no failure {failure!r}", _whose(lab, failure))
    return FAILURES[failure](lab, host)


def _whose(lab: Lab, failure: str) -> str:
    """Return what to do about a failure that hosts do not have: who has it, or which ones they have."""
    for kind, known, there, options in (
        ("router", routers.FAILURES, lab.routers, "--routers bird"),
        ("switch", switches.FAILURES, lab.switches, "--backend sdn"),
        ("controller", controllers.FAILURES, lab.controllers, "--backend sdn"),
    ):
        if any(re.fullmatch(word.replace("SWITCH", ".*"), failure) for word in known):
            if there:
                return f"it is a {kind}'s: linkspan lab break {there[0].name} {failure}"
            return f"it is a {kind}'s, and this lab has none: linkspan lab up {options}"
    return f"the known ones are {', '.join(FAILURES)} and {PARTITION}HOST"


def _note(lab: Lab, host: Host, failure: str) -> None:
    """Record a lasting failure, before it is caused."""
    if failure not in host.broken:
        host.broken.append(failure)
    lab.save()


def _agent_kill(lab: Lab, host: Host) -> str:
    _note(lab, host, KILLED)
    count = processes.kill(lab.folder, lambda: processes.agents(lab.folder, host.name), f"host {host.name}")
    if not count:
        raise NotFound(f"no agent runs on host {host.name}", f"linkspan lab mend {host.name} starts it")
    return f"the agent of {host.name} is killed"


def _link_down(lab: Lab, host: Host) -> str:
    _note(lab, host, DOWN)
    commands.run("ip", "-n", host.namespace, "link", "set", CABLE, "down")
    return f"{CABLE} of {host.name} is down"


def _rules_flush(_lab: Lab, host: Host) -> str:
    commands.run("nft", "flush", "ruleset", netns=host.namespace)
    return f"every nftables rule of {host.name} is gone"


def _routes_flush(_lab: Lab, host: Host) -> str:
    count = 0
    for family in ("-4", "-6"):
        routes = ("ip", family, "-n", host.namespace, "route")
        for ours in (("proto", str(ROUTE_PROTOCOL)), ("proto", "bird", "metric", str(LEARNT_METRIC))):
            count += len(commands.run(*routes, "show", "table", "all", *ours).splitlines())
            commands.run(*routes, "flush", "table", "all", *ours)
    if not count:
        raise NotFound(f"host {host.name} has no route of linkspan's", "does it have a network?")
    return f"{count} routes of linkspan's on {host.name} are gone"


def _fdb_flush(_lab: Lab, host: Host) -> str:
    listed = json.loads(commands.run("bridge", "-n", host.namespace, "-j", "fdb", "show") or "[]")
    lines = [
        f"fdb del {entry['mac']} dev {entry['ifname']} dst {entry['dst']} self"
        for entry in listed
        if "dst" in entry and OURS.match(entry["ifname"])
    ]
    if not lines:
        raise NotFound(
            f"host {host.name} has no FDB entry of linkspan's",
            "a network of backend vxlan has them, with two hosts",
        )
    commands.run("bridge", "-n", host.namespace, "-batch", "-", given="\n".join(lines) + "\n")
    return f"{len(lines)} FDB entries of {host.name} are gone"


def _store_cut(lab: Lab, host: Host) -> str:
    if lab.store != "etcd" or lab.alone:
        raise Invalid(
            f"lab {lab.name} has a SQLite store, a file of this machine: one host cannot be cut off from it",
            "make a lab with --store etcd",
        )
    _note(lab, host, STORE_CUT)
    underlay.put_cuts(lab)
    return f"{host.name} does not reach the store"


def _helper_kill(lab: Lab, host: Host) -> str:
    pids = processes.helpers(lab.folder, host.name)
    if not pids:
        raise NotFound(
            f"no helper program runs on host {host.name}",
            "DNS names need one, and backends bgp, ipsec, and ipip and wireguard if the kernel lacks these",
        )
    remaining = set(pids)
    count = processes.kill(
        lab.folder,
        lambda: sorted(remaining & set(processes.helpers(lab.folder, host.name))),
        f"host {host.name}",
    )
    return f"{counted(count, 'helper program')} of {host.name} {'is' if count == 1 else 'are'} killed"


def _reboot(lab: Lab, host: Host) -> str:
    """Make the kernel's part of a host again; its disk, the state folder, stays."""
    mine = [container for container in lab.containers if container.host == host.name]
    marks = (f"agent/{host.name}", f"exec/{host.name}", *(f"exec/{c.name}" for c in mine))
    host.boot_id = str(uuid.uuid4())
    host.broken = [word for word in host.broken if word not in (KILLED, DOWN)]
    lab.save()
    processes.kill(
        lab.folder,
        lambda: list(processes.of_lab(lab.folder, lambda role, _: role in marks)),
        f"host {host.name}",
    )
    underlay.unplug(lab, host)
    for namespace in (*(container.namespace for container in mine), host.namespace):
        commands.delete(namespace)
    underlay.plug(lab, host)
    agents.start(lab, [host])
    for network in dict.fromkeys(one.network for container in mine for one in container.attachments):
        agents.await_network(lab, [host], network)
    containers.make(lab, mine)
    return f"{host.name} has rebooted, with {counted(len(mine), 'container')}"


def _partition(lab: Lab, host: Host, other: str) -> str:
    if lab.switches:
        raise Invalid(
            "hosts of a lab with OpenFlow switches cannot be separated from each other",
            f"cut a link: linkspan lab break {host.name} link-down, or break sw2 link-down:sw3",
        )
    if lab.host(other) is host:
        raise Invalid(
            f"host {host.name} cannot be parted from itself", f"give {PARTITION}HOST of another one"
        )
    _note(lab, host, PARTITION + other)
    underlay.put_cuts(lab)
    return f"{host.name} and {other} do not reach each other"


FAILURES: dict[str, Callable[[Lab, Host], str]] = {
    KILLED: _agent_kill,
    DOWN: _link_down,
    "rules-flush": _rules_flush,
    "routes-flush": _routes_flush,
    "fdb-flush": _fdb_flush,
    STORE_CUT: _store_cut,
    "reboot": _reboot,
    "helper-kill": _helper_kill,
}


def mend(lab: Lab, host: Host) -> list[str]:
    """Undo all lasting failures of a host, whichever of two was named; return what was done."""
    done = []
    apart = [one for one in lab.hosts if PARTITION + host.name in one.broken]
    cut = [word for word in host.broken if word == STORE_CUT or word.startswith(PARTITION)]
    host.broken = [word for word in host.broken if word not in cut]
    for one in apart:
        one.broken.remove(PARTITION + host.name)
    if cut or apart:
        underlay.put_cuts(lab)
        lab.save()
        done += [f"{word} is over" for word in cut]
        done += [f"{PARTITION}{host.name} of {one.name} is over" for one in apart]
    if DOWN in host.broken or not _up(host):
        underlay.connect(lab, host)
        done.append(f"{CABLE} is up")
    if not agents.alive(lab, host):
        agents.start(lab, [host])
        done.append("the agent is started")
    host.broken = []
    lab.save()
    return done


def _up(host: Host) -> bool:
    try:
        (link,) = json.loads(commands.run("ip", "-n", host.namespace, "-j", "link", "show", CABLE))
    except LinkspanError as error:
        raise error.within(f"host {host.name}") from error
    return "UP" in link["flags"]
