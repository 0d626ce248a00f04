"""etcd of a lab: one member or several on the switch, reached from every segment, each at a port of its own."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from linkspan.core.errors import LinkspanError, NotFound, Unavailable
from linkspan.lab import commands, credentials, processes, sockets
from linkspan.lab.record import Lab
from linkspan.lab.topology import ETCD_PORT, PREFIX, USER, credential, etcd_ports

FIRST = "lab"
"""The name of the first member."""
QUICK = ("--heartbeat-interval", "20", "--election-timeout", "200")
"""A single member elects itself. Several have etcd's own times, because a busy machine makes heartbeats late."""


def names(lab: Lab) -> dict[str, int]:
    """Return the port for clients of each member; members reach each other at the next one."""
    return {f"{FIRST}{number if number > 1 else ''}": port for number, port in enumerate(etcd_ports(lab), 1)}


def start(lab: Lab) -> None:
    """Start the members that do not run; wait until all serve the lab's users, and only them."""
    try:
        commands.run("etcd", "--version")
    except NotFound as error:
        raise NotFound("etcd is not installed", "apt install etcd-server, or use --store sqlite") from error
    try:
        credentials.make(lab)
    except NotFound as error:
        raise NotFound("openssl is not installed, which makes etcd's certificates", "apt install openssl") from error
    fresh = not any(_data(lab, name).exists() for name in names(lab))
    started = {name: _started(lab, name) for name in names(lab) if not pids(lab, name)}
    for name, process in started.items():
        _await(lab, name, process)
    if fresh:
        _set_users(lab)


def pids(lab: Lab, name: str) -> list[int]:
    """Return the processes of a member: one, or none."""
    return list(processes.of_lab(lab.folder, lambda role, _environ: role == _label(name)))


def kill(lab: Lab, name: str) -> None:
    """End a member at once; its data stay."""
    processes.kill(lab.folder, lambda: pids(lab, name), f"etcd's member {name}")


def leader(lab: Lab) -> str:
    """Return the name of the member that leads, '' if none does that answers."""
    for name, port in names(lab).items():
        with contextlib.suppress(OSError, http.client.HTTPException, LinkspanError):
            said = msgspec.json.decode(ask(lab, "POST", "/v3/maintenance/status", {}, port))
            if said["leader"] == said["header"]["member_id"]:
                return name
    return ""


def _label(name: str) -> str:
    """Return the role of a member's process, and the name of its folder."""
    return "etcd" if name == FIRST else f"etcd-{name}"


def _data(lab: Lab, name: str) -> Path:
    return lab.folder / _label(name)


def _started(lab: Lab, name: str) -> subprocess.Popen[bytes]:
    port = names(lab)[name]
    peers = {each: f"http://127.0.0.1:{number + 1}" for each, number in names(lab).items()}
    ca, cert, key = (str(credential(lab, file)) for file in ("ca.pem", "server.pem", "server.key"))
    argv = [
        *("etcd", "--name", name, "--data-dir", str(_data(lab, name))),
        *("--listen-client-urls", f"https://{'[::]' if _has_ipv6() else '0.0.0.0'}:{port}"),
        *("--advertise-client-urls", f"https://127.0.0.1:{port}"),
        *("--listen-peer-urls", peers[name], "--initial-advertise-peer-urls", peers[name]),
        *("--initial-cluster", ",".join(f"{each}={url}" for each, url in peers.items())),
        *("--cert-file", cert, "--key-file", key, "--trusted-ca-file", ca, "--client-cert-auth"),
        *(QUICK if len(peers) == 1 else ()),
        *("--bcrypt-cost", "4", "--unsafe-no-fsync", "--log-level", "warn"),
    ]
    environment = processes.environment(lab.folder, _label(name))
    return processes.start(lab.switch, "", argv, environment, _log(lab, name))


def _log(lab: Lab, name: str) -> Path:
    return lab.folder / f"{_label(name)}-server"


def _await(lab: Lab, name: str, process: subprocess.Popen[bytes]) -> None:
    def serves() -> bool:
        if process.poll() is not None:
            raise LinkspanError("etcd ended right after its start", f"see {_log(lab, name)}.log")
        with contextlib.suppress(OSError, http.client.HTTPException, LinkspanError):
            return b"true" in ask(lab, "GET", "/health", port=names(lab)[name])
        return False

    if not commands.await_(serves):
        raise Unavailable(f"etcd does not answer after {commands.PATIENCE:.0f} s", f"see {_log(lab, name)}.log")


def ask(lab: Lab, method: str, path: str, body: object = None, port: int = ETCD_PORT) -> bytes:
    """Ask a member by its gateway, from the switch. Raises OSError or HTTPException, LinkspanError if it refuses."""
    ca, cert, key = (str(credential(lab, name)) for name in ("ca.pem", "client.pem", "client.key"))
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(cert, key)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with sockets.inside(lab.switch):
        plain = socket.create_connection(("127.0.0.1", port), commands.PATIENCE)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection.sock:
        connection.request(method, path, None if body is None else msgspec.json.encode(body))
        answer = connection.getresponse()
        said = answer.read()
    if answer.status != http.client.OK:
        raise LinkspanError(f"etcd refuses {path}: {said.decode(errors='replace').strip()}")
    return said


def _set_users(lab: Lab) -> None:
    """Let in only root, and the lab's user: the agents use it, and they alone maintain this etcd."""
    for path, body in _users(lab):
        ask(lab, "POST", f"/v3/auth/{path}", body)


def _users(lab: Lab) -> Iterator[tuple[str, dict[str, object]]]:
    # The range of a prefix ends before the next string of its length.
    begin = f"{PREFIX}/".encode()
    permission = {"permType": "READWRITE", "key": begin, "range_end": begin[:-1] + bytes([begin[-1] + 1])}
    yield "role/add", {"name": USER}
    yield "role/grant", {"name": USER, "perm": permission}
    yield "user/add", {"name": USER, "password": credentials.password(lab, USER)}
    yield "user/grant", {"user": USER, "role": USER}
    yield "user/grant", {"user": USER, "role": credentials.ROOT}  # without it no agent may defragment etcd
    yield "user/add", {"name": credentials.ROOT, "password": credentials.password(lab, credentials.ROOT)}
    yield "user/grant", {"user": credentials.ROOT, "role": credentials.ROOT}
    yield "enable", {}


def _has_ipv6() -> bool:
    return Path("/proc/net/if_inet6").exists()
