"""Building and removal of a lab, in any state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from linkspan.core.errors import Conflict, LinkspanError, counted
from linkspan.lab import (
    agents,
    commands,
    containers,
    controllers,
    etcd_servers,
    processes,
    record,
    rootless,
    routers,
    switches,
    underlay,
)
from linkspan.lab.record import Attachment, Lab

Step = Callable[[str], contextlib.AbstractContextManager[None]]
"""Reports to the user that something takes a while: ``with step("agents"): ...``."""


@contextlib.contextmanager
def silently(_what: str) -> Iterator[None]:
    """Report nothing."""
    yield


def up(lab: Lab, step: Step = silently) -> None:
    """Make a lab; if a part fails, remove what was made. Raises LinkspanError."""
    if record.exists(lab.name):
        found = record.load(lab.name)
        state = "is up already" if found.complete else "was left half made"
        raise Conflict(f"lab {lab.name} {state}", f"linkspan lab down --lab {lab.name}, or use another --lab")
    routers.require(lab)
    switches.require(lab)
    for namespace in lab.namespaces:
        if commands.there(namespace):
            raise Conflict(
                f"a network namespace {namespace} exists already, and no lab made it",
                f"use another --lab, or remove it: ip netns delete {namespace}",
            )
    for container in lab.containers:
        container.attachments = [Attachment(lab.network)]
    lab.save()
    try:
        _make(lab, step)
    except (LinkspanError, KeyboardInterrupt) as error:
        with step("removing what was made"):
            logs = record.keep_logs(lab)
            down(lab.name)
        if isinstance(error, LinkspanError) and (not error.hint or str(lab.folder) in error.hint):
            error.hint = f"the logs are in {logs}"
            if rootless.entered():
                error.hint = "as root (sudo) the logs are kept; here they were removed with the lab's own /run"
        raise
    record.drop_logs(lab.name)
    lab.complete = True
    lab.save()


def _make(lab: Lab, step: Step) -> None:
    names = f"{lab.hosts[0].name}..{lab.hosts[-1].name}" if len(lab.hosts) > 1 else lab.hosts[0].name
    what = counted(lab.segments, "segment")
    if lab.switches:
        what = f"Open vSwitch with {', '.join(switch.name for switch in lab.switches)}"
    with step(f"underlay: {what}, hosts {names}"):
        underlay.make(lab)
        for host in lab.hosts:
            underlay.plug(lab, host)
    if lab.bare:
        agents.prepare(lab)
        return
    if lab.routers:
        names = ", ".join(f"{router.name} (AS {router.asn})" for router in lab.routers[:4])
        with step(f"{lab.routers[0].software}: {names}{', ..' if len(lab.routers) > 4 else ''}"):
            routers.start(lab, lab.routers)
    if lab.store == "etcd" and not lab.alone:
        with step(f"etcd{f', {lab.store_members} members' if lab.store_members > 1 else ''}"):
            etcd_servers.start(lab)
    if lab.controllers:
        with step(counted(len(lab.controllers), "controller")):
            controllers.start(lab, lab.controllers)
    with step(counted(len(lab.hosts), "agent")):
        agents.start(lab, lab.hosts)
        agents.set_hosts(lab)
    with step(f"network {lab.network}: backend {lab.backend}, {', '.join(lab.pools)}"):
        agents.create_network(lab)
    with step(counted(len(lab.containers), "container")):
        containers.make(lab, lab.containers)
        agents.await_names(lab)


def down(name: str) -> bool:
    """Remove a lab; return whether there was one. Continue past errors and raise them together."""
    if not record.exists(name):
        record.drop_logs(name)
        record.erase(name)
        return False
    lab = record.load(name)
    failed: list[str] = []
    kill = partial(processes.kill, lab.folder, lambda: list(processes.of_lab(lab.folder, _any)), f"lab {name}")
    deletes = [partial(commands.delete, namespace) for namespace in lab.namespaces]
    # Kill once more at the end: a killed agent may have been about to start a process that had no mark yet.
    steps: list[Callable[[], object]] = [kill, *deletes, kill]
    for step in steps:
        try:
            step()
        except LinkspanError as error:
            failed.append(error.message)
    if failed:
        raise LinkspanError(
            f"lab {name} is not completely removed: {'; '.join(failed)}", "fix that and try again"
        )
    record.erase(name)
    return True


def _any(_role: str, _environ: bytes) -> bool:
    return True
