"""Agents of a lab's hosts, and etcd: started at once, awaited together."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import socket
import ssl
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from linkspan.api.client import Client
from linkspan.backends import backend
from linkspan.core import config
from linkspan.core.addresses import HIDDEN
from linkspan.core.errors import LinkspanError, NotFound, Unavailable
from linkspan.kernel.io.durable_files import BOOT_ID
from linkspan.lab import commands, credentials, processes, sockets
from linkspan.lab.record import Host, Lab
from linkspan.lab.topology import ETCD_PORT, PREFIX, USER, credential, settings, shared_key, store_url
from linkspan.lab.underlay import CABLE

Started = tuple[Host, Path, "subprocess.Popen[bytes]"]


def client(lab: Lab, host: str) -> Client:
    """Return a client of a host's agent."""
    return Client(lab.socket(host))


def options(lab: Lab, host: Host) -> dict[str, object]:
    """Return what a host's agent is told beside its file, by the names of the settings."""
    found: dict[str, object] = {
        "state_dir": str(lab.folder / host.name / "state"),
        "socket": lab.socket(host.name),
    }
    if not lab.alone:
        found |= {"host_id": host.name, "store": store_url(lab, host), "underlay": CABLE}
        found |= {"advertise": [HIDDEN]} if host.nat else {}
    return found


def start(lab: Lab, hosts: Iterable[Host]) -> None:
    """Start the agents of these hosts and wait until all are ready. Raises LinkspanError with the host's name."""
    for host, log, process in [_started(lab, host) for host in hosts]:
        processes.await_word(process, log, "ready", f"the agent of host {host.name}")


def _started(lab: Lab, host: Host) -> Started:
    folder = lab.folder / host.name
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    more = {BOOT_ID: host.boot_id} if host.boot_id else {}
    try:
        settings = config.checked(config.given(str(_config(lab, folder)), "", options(lab, host)))
    except LinkspanError as error:
        raise error.within(f"the agent of host {host.name}") from error
    argv, variables = config.process(settings)
    env = processes.environment(lab.folder, f"agent/{host.name}", **more, **variables)
    log = folder / "agent"
    return host, log, processes.start(host.namespace, host.name, argv, env, log)


def _config(lab: Lab, folder: Path) -> Path:
    """Return the path of a host's own configuration file; keep what a user wrote there."""
    path = folder / "agent.toml"
    if not path.exists():
        text = "# Keys: `linkspan agent --print-config`. Read at the agent's start.\n"
        if lab.store == "etcd" and not lab.alone:
            text += 'store_upkeep = "all"  # the etcd is the lab\'s own\n'
        path.write_text(text, encoding="utf-8")
    return path


def alive(lab: Lab, host: Host) -> bool:
    """Return whether a host's agent runs."""
    return bool(processes.agents(lab.folder, host.name))


def start_etcd(lab: Lab) -> None:
    """Start etcd on the switch, reached from every segment; wait until it serves the lab's users, and only them."""
    try:
        commands.run("etcd", "--version")
    except NotFound as error:
        raise NotFound("etcd is not installed", "apt install etcd-server, or use --store sqlite") from error
    try:
        credentials.make(lab)
    except NotFound as error:
        raise NotFound("openssl is not installed, which makes etcd's certificates", "apt install openssl") from error
    data = lab.folder / "etcd"
    fresh = not data.exists()
    peer = "http://127.0.0.1:2380"
    ca, cert, key = (str(credential(lab, name)) for name in ("ca.pem", "server.pem", "server.key"))
    argv = [
        *("etcd", "--name", "lab", "--data-dir", str(data)),
        *("--listen-client-urls", f"https://{'[::]' if _has_ipv6() else '0.0.0.0'}:{ETCD_PORT}"),
        *("--advertise-client-urls", f"https://127.0.0.1:{ETCD_PORT}"),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"lab={peer}"),
        *("--cert-file", cert, "--key-file", key, "--trusted-ca-file", ca, "--client-cert-auth"),
        *("--heartbeat-interval", "20", "--election-timeout", "200"),  # a single member elects itself
        *("--bcrypt-cost", "4", "--unsafe-no-fsync", "--log-level", "warn"),
    ]
    log = lab.folder / "etcd-server"
    process = processes.start(lab.switch, "", argv, processes.environment(lab.folder, "etcd"), log)

    def serves() -> bool:
        if process.poll() is not None:
            raise LinkspanError("etcd ended right after its start", f"see {log}.log")
        with contextlib.suppress(OSError, http.client.HTTPException):
            return b"true" in _etcd(lab, "GET", "/health")
        return False

    if not commands.await_(serves):
        raise Unavailable(f"etcd does not answer after {commands.PATIENCE:.0f} s", f"see {log}.log")
    if fresh:
        _set_users(lab)


def _etcd(lab: Lab, method: str, path: str, body: object = None) -> bytes:
    """Ask etcd by its gateway, from the switch. Raises OSError or HTTPException, LinkspanError if it refuses."""
    ca, cert, key = (str(credential(lab, name)) for name in ("ca.pem", "client.pem", "client.key"))
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(cert, key)
    connection = http.client.HTTPConnection("127.0.0.1", ETCD_PORT)
    with sockets.inside(lab.switch):
        plain = socket.create_connection(("127.0.0.1", ETCD_PORT), commands.PATIENCE)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection.sock:
        connection.request(method, path, None if body is None else msgspec.json.encode(body))
        answer = connection.getresponse()
        said = answer.read()
    if answer.status != http.client.OK:
        raise LinkspanError(f"etcd refuses {path}: {said.decode(errors='replace').strip()}")
    return said


def _set_users(lab: Lab) -> None:
    """Let in only root, and the lab's user: the agents use it, and they alone maintain this etcd."""
    # The range of a prefix ends before the next string of its length.
    begin = f"{PREFIX}/".encode()
    permission = {"permType": "READWRITE", "key": begin, "range_end": begin[:-1] + bytes([begin[-1] + 1])}
    for path, body in (
        ("role/add", {"name": USER}),
        ("role/grant", {"name": USER, "perm": permission}),
        ("user/add", {"name": USER, "password": credentials.password(lab, USER)}),
        ("user/grant", {"user": USER, "role": USER}),
        ("user/grant", {"user": USER, "role": credentials.ROOT}),  # without it no agent may defragment etcd
        ("user/add", {"name": credentials.ROOT, "password": credentials.password(lab, credentials.ROOT)}),
        ("user/grant", {"user": credentials.ROOT, "role": credentials.ROOT}),
        ("enable", {}),
    ):
        _etcd(lab, "POST", f"/v3/auth/{path}", body)


def _has_ipv6() -> bool:
    return Path("/proc/net/if_inet6").exists()


def set_hosts(lab: Lab) -> None:
    """Set the hosts' settings of such a lab beyond their agents' options (`host set`).

    An agent that is ready may not have joined its cluster yet. Raises Unavailable if one does not join.
    """
    if lab.backend == "ipsec":
        _make_key(shared_key(lab))
    for host in lab.hosts:
        path = f"/v1/hosts/{quote(host.name)}"
        if wish := settings(lab, host):
            if not commands.await_(lambda host=host, path=path: _found(lab, host, path)):  # type: ignore[misc]
                log = lab.folder / host.name / "agent.log"
                raise Unavailable(f"host {host.name} does not join the cluster", f"see {log}")
            client(lab, host.name).call("PATCH", path, wish)


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


def await_network(lab: Lab, hosts: Sequence[Host], network: str) -> None:
    """Wait until agents know a network, and have a lease if it crosses hosts.

    Raises Unavailable with the name of a host that does not.
    """
    for host in hosts:
        if not commands.await_(lambda host=host: _knows(lab, host, network)):  # type: ignore[misc]
            raise Unavailable(
                f"host {host.name} has not received network {network} after {commands.PATIENCE:.0f} s",
                f"see {lab.folder / host.name / 'agent.log'}",
            )


def _knows(lab: Lab, host: Host, network: str) -> bool:
    try:
        found = client(lab, host.name).call("GET", f"/v1/networks/{quote(network)}")
        if lab.alone or not backend(found["backend"]).crosses_hosts:
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
