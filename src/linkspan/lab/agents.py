"""Agents of a lab's hosts: started at once, awaited together."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from linkspan.api.client import Client
from linkspan.backends import backend
from linkspan.core import config
from linkspan.core.addresses import HIDDEN
from linkspan.core.errors import LinkspanError, NotFound, Unavailable
from linkspan.kernel.io.durable_files import BOOT_ID
from linkspan.lab import commands, processes
from linkspan.lab.record import Host, Lab
from linkspan.lab.topology import settings, shared_key, store_url
from linkspan.lab.underlay import CABLE

Started = tuple[Host, Path, "subprocess.Popen[bytes]"]


def client(lab: Lab, host: str) -> Client:
    """Return a client of a host's agent."""
    return Client(lab.socket(host))


def options(lab: Lab, host: Host) -> dict[str, object]:
    """Return what a host's agent is told beside its file, by the names of the settings."""
    if lab.bare:
        return {}  # its file says everything, as on a machine
    found: dict[str, object] = {
        "state_dir": str(lab.folder / host.name / "state"),
        "socket": lab.socket(host.name),
    }
    if not lab.alone:
        found |= {"host_id": host.name, "store": store_url(lab, host), "underlay": CABLE}
        found |= {"advertise": [HIDDEN]} if host.nat else {}
    return found


def prepare(lab: Lab) -> None:
    """Write the settings of bare hosts: what on a machine are the default paths, and the default route's interface."""
    for host in lab.hosts:
        (lab.folder / host.name).mkdir(mode=0o755, parents=True, exist_ok=True)
        paths = {"state_dir": str(lab.folder / host.name / "state"), "socket": lab.socket(host.name), "underlay": CABLE}
        lab.settings(host.name).write_text(config.as_toml(paths), encoding="utf-8")


def start(lab: Lab, hosts: Iterable[Host]) -> None:
    """Start the agents of these hosts and wait until all are ready. Raises LinkspanError with the host's name."""
    for host, log, process in [_started(lab, host) for host in hosts]:
        processes.await_word(process, log, "ready", f"the agent of host {host.name}")


def _started(lab: Lab, host: Host) -> Started:
    folder = lab.folder / host.name
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    more = {BOOT_ID: host.boot_id} if host.boot_id else {}
    try:
        settings = config.checked(config.given(str(_config(lab, host)), "", options(lab, host)))
    except LinkspanError as error:
        raise error.within(f"the agent of host {host.name}") from error
    argv, variables = config.process(settings, str(lab.settings(host.name)))
    env = processes.environment(lab.folder, f"agent/{host.name}", **more, **variables)
    log = folder / "agent"
    return host, log, processes.start(host.namespace, host.name, argv, env, log)


def _config(lab: Lab, host: Host) -> Path:
    """Return the path of a host's own configuration file; keep what a user wrote there."""
    path = lab.settings(host.name)
    if not path.exists():
        text = "# Keys: `linkspan agent --print-config`. Read at the agent's start.\n"
        if lab.store == "etcd" and not lab.alone:
            text += 'store_upkeep = "all"  # the etcd is the lab\'s own\n'
        path.write_text(text, encoding="utf-8")
    return path


def alive(lab: Lab, host: Host) -> bool:
    """Return whether a host's agent runs."""
    return bool(processes.agents(lab.folder, host.name))


def set_hosts(lab: Lab) -> None:
    """Set the hosts' settings of such a lab beyond their agents' options (`host set`).

    All of its hosts take part in every network: what a host itself reaches is to be seen without a container on it.
    An agent that is ready may not have joined its cluster yet. Raises Unavailable if one does not join.
    """
    if not lab.alone:
        _await_joined(lab, lab.hosts[0])
        client(lab, lab.hosts[0].name).call("PATCH", "/v1/hosts", {"networks": "all"})
    if lab.backend == "ipsec":
        _make_key(shared_key(lab))
    for host in lab.hosts:
        if wish := settings(lab, host):
            _await_joined(lab, host)
            client(lab, host.name).call("PATCH", f"/v1/hosts/{quote(host.name)}", wish)


def _await_joined(lab: Lab, host: Host) -> None:
    """Wait until a host's record is in the store. Raises Unavailable."""
    if not commands.await_(lambda: _found(lab, host, f"/v1/hosts/{quote(host.name)}")):
        raise Unavailable(
            f"host {host.name} does not join the cluster", f"see {lab.folder / host.name / 'agent.log'}"
        )


def _make_key(path: Path) -> None:
    """Make the key that all hosts share; a lab's hosts are on one machine, and so have one file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(f"{secrets.token_urlsafe(32)}\n")


def create_network(lab: Lab) -> list[dict[str, Any]]:
    """Create the lab's network: on h1, and wait for it elsewhere; or on each host if each is alone."""
    wish = {"name": lab.network, "pools": lab.pools, "backend": lab.backend, "options": lab.options}
    creators = lab.hosts if lab.alone else lab.hosts[:1]
    made = [dict(client(lab, host.name).call("POST", "/v1/networks", wish)) for host in creators]
    await_network(lab, lab.hosts, lab.network)
    return made


def await_network(lab: Lab, hosts: Sequence[Host], network: str, *, leased: bool = True) -> None:
    """Wait until agents know a network, and have a lease if it crosses hosts and they are to be ``leased`` one.

    Raises Unavailable with the name of a host that does not.
    """
    for host in hosts:
        if not commands.await_(lambda host=host: _knows(lab, host, network, leased)):  # type: ignore[misc]
            raise Unavailable(
                f"host {host.name} has not received network {network} after {commands.PATIENCE:.0f} s",
                f"see {lab.folder / host.name / 'agent.log'}",
            )


def _knows(lab: Lab, host: Host, network: str, leased: bool) -> bool:
    try:
        found = client(lab, host.name).call("GET", f"/v1/networks/{quote(network)}")
        if lab.alone or not leased or not backend(found["backend"]).crosses_hosts:
            return True
        leases = client(lab, host.name).call("GET", f"/v1/hosts/{quote(host.name)}")["leases"]
    except NotFound:
        return False
    return network in {lease["network"] for lease in leases}


def await_names(lab: Lab) -> None:
    """Wait a while until containers' names are answered on their hosts; missing names are no failure of the lab."""
    for host in lab.hosts:
        commands.await_(lambda host=host: not _awaits_names(lab, host))  # type: ignore[misc]


def _awaits_names(lab: Lab, host: Host) -> bool:
    networks = client(lab, host.name).call("GET", "/v1/status")["networks"]
    return any(one["names"] == "awaited" for one in networks)


def _found(lab: Lab, host: Host, path: str) -> bool:
    try:
        client(lab, host.name).call("GET", path)
    except NotFound:
        return False
    return True
