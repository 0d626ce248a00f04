"""`linkspan attach`, `detach`, and `endpoint`."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
import typer

from linkspan.api.client import Client, part
from linkspan.cli.output import (
    DEFAULT_SOCKET,
    Format,
    Output,
    Socket,
    as_json,
    as_json_list,
    joined,
    pairs,
    say,
    split,
    table,
)
from linkspan.core import bandwidth as limits
from linkspan.core import ports
from linkspan.core.errors import Invalid, NotFound, Unavailable, counted
from linkspan.core.model import Bandwidth
from linkspan.kernel.io.namespaces import open_namespace
from linkspan.runtimes import runtimes

app = typer.Typer(no_args_is_help=True, help="Endpoints: the attached interfaces of containers.")

_RUNTIMES = tuple(name for name, runtime in runtimes().items() if runtime.inspects)
"""Runtimes whose own command finds a container by its name."""
Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help=f"netns:NAME, a path, pid:N, {', '.join(f'{name}:NAME' for name in _RUNTIMES)}; "
        "a bare word names a namespace.",
    ),
]


def located(target: str) -> tuple[str, str, str]:
    """Return (container id, its name, path of its namespace) for a target as users write it. Raises LinkspanError.

    The name is "" if only a runtime could know one.
    """
    kind, colon, word = target.partition(":")
    if target.startswith("/"):
        return re.sub(r"[^a-zA-Z0-9_.-]+", "-", target).strip("-._"), "", target
    if not colon or kind == "netns":
        name = word if colon else target
        return name, "", f"/run/netns/{name}"
    if kind == "pid":
        if not word.isdigit():
            raise Invalid(f"target {target!r}: {word!r} is not a process id", "write pid:1234")
        return f"pid-{word}", "", f"/proc/{word}/ns/net"
    if kind in _RUNTIMES:
        return _container(kind, word)
    raise Invalid(
        f"target {target!r} is not understood",
        f"use netns:NAME, a path, pid:N{', '.join(['', *(f'{name}:NAME' for name in _RUNTIMES)])}",
    )


def _container(runtime: str, name: str) -> tuple[str, str, str]:
    command = [
        runtime,
        "inspect",
        "--type",
        "container",
        "--format",
        "{{.Id}} {{.State.Pid}} {{.Name}}",
        name,
    ]
    what = f"{runtime} container {name!r}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError as error:
        hint = f"install {runtime}, or name the container's namespace by pid:N, a path or netns:NAME"
        raise NotFound(f"{what}: there is no command {runtime} on this machine", hint) from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{what}: {runtime} has not answered for 30 s", f"does `{runtime} ps`?") from error
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or [f"{runtime} inspect ended with {done.returncode}"]
        raise NotFound(f"{what}: {why[0]}", f"does `{runtime} ps` show it?")
    identity, pid, called = done.stdout.split()
    if pid == "0":
        raise Invalid(f"{what} is not running", f"{runtime} start {name}")
    return identity, called.lstrip("/"), f"/proc/{pid}/ns/net"


def attach(
    target: Target,
    network: Annotated[str, typer.Option(metavar="N", help="The network.")],
    ifname: Annotated[
        str, typer.Option(metavar="NAME", help="The interface's name; default: the next free ethN.")
    ] = "",
    id_: Annotated[
        str, typer.Option("--id", metavar="ID", help="The container's id; default: made from TARGET.")
    ] = "",
    name: Annotated[str, typer.Option(metavar="NAME", help="The container's name.")] = "",
    ip: Annotated[
        list[str], typer.Option(metavar="IP", help="Exactly this address; one for each family.")
    ] = [],  # noqa: B006 - typer's way
    mac: Annotated[str, typer.Option(metavar="MAC", help="Exactly this MAC.")] = "",
    publish: Annotated[
        list[str],
        typer.Option(
            metavar="[IP:]PORT:PORT[/PROTO][,from=CIDR]",
            help="Publish a port of the host: 8080:80, 192.0.2.1:53:53/udp, 8000-8010:8000-8010; from=CIDR: only "
            "clients from there may come in by it.",
        ),
    ] = [],  # noqa: B006 - typer's way
    label: Annotated[list[str], typer.Option(metavar="K=V", help="A label.")] = [],  # noqa: B006 - typer's way
    bandwidth: Annotated[
        str,
        typer.Option(
            metavar="in=RATE,out=RATE", help="Limit what it receives and sends, in bits a second: in=20M,out=5M."
        ),
    ] = "",
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Attach a container to a network."""
    client = Client(socket)
    identity, called, path = located(target)
    wanted = [ports.parse_list(text) for text in publish]
    body: dict[str, Any] = {
        "id": id_ or identity,
        "network": network,
        "ifname": ifname,
        "name": name or called,
        "ips": split(ip),
        "mac": mac,
        "ports": [msgspec.to_builtins(port) for exact, _ in wanted for port in exact],
        "port_ranges": [msgspec.to_builtins(wish) for _, ranges in wanted for wish in ranges],
        "labels": pairs(label, "--label"),
        "bandwidth": msgspec.to_builtins(limits.parse(bandwidth)) if bandwidth else None,
    }
    endpoint = _attached(client, network, path, body)
    if output is Format.JSON:
        as_json(endpoint)
    else:
        say(_summary(endpoint, network))


def _attached(client: Client, network: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Attach what is in the namespace at ``path``, and return the endpoint."""
    on_host = client.call("GET", f"/v1/networks/{part('network', network)}")["backend"] == "host"
    # A process or a bare name may share the host's namespace; a named namespace is always another one.
    if on_host and not (path.startswith("/run/netns/") and Path(path).exists()):
        return dict(client.call("POST", "/v1/attach", body))
    fd = open_namespace(path)
    try:
        return dict(client.call("POST", "/v1/attach", body | {"namespace_fd": fd, "namespace_path": path}))
    finally:
        os.close(fd)


def _summary(endpoint: dict[str, Any], network: str) -> str:
    """Return what an endpoint has, in one line."""
    words = [f"{endpoint['name'] or endpoint['id']}: {endpoint['ifname']} on network {network}"]
    words += [f"address {joined(endpoint['addresses'])}"] if endpoint["addresses"] else []
    words += [f"gateway {joined(endpoint['gateways'])}"] if endpoint["gateways"] else []
    words += [f"ports {joined(map(_port, endpoint['ports']))}"] if endpoint["ports"] else []
    words += [f"bandwidth {limit}"] if (limit := _limit(endpoint)) else []
    return ", ".join(words)


def detach(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A container's name, its name in DNS, or an id as listed; NAME@NETWORK; or as for attach.",
        ),
    ] = "",
    id_: Annotated[str, typer.Option("--id", metavar="ID", help="Container id.")] = "",
    ifname: Annotated[str, typer.Option(metavar="NAME", help="Only this interface.")] = "",
    network: Annotated[str, typer.Option(metavar="N", help="Only from this network.")] = "",
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also from a network to which its engine attached it; the engine does not learn of it.",
        ),
    ] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Detach a container; if it is gone already, say so and succeed."""
    if not id_ and not target:
        raise typer.BadParameter("give TARGET or --id ID")
    identity, named = (id_, False) if id_ else _meant(target)
    wanted = {"id": identity, "named": named, "ifname": ifname, "network": network, "force": force}
    gone = Client(socket).call("POST", "/v1/detach", wanted)
    if output is Format.JSON:
        as_json(gone)
    else:
        why = f": {gone['why']}" if gone.get("why") else ""  # a running agent may be older
        say(f"{identity}: {counted(gone['detached'], 'interface')} detached{why}")


def _meant(target: str) -> tuple[str, bool]:
    """Return a target's container id, and whether it may be a name instead.

    A bare word may, and so must a runtime's container that has ended. A namespace, a path and a process are
    exact: a container that happens to have that name is a different one.
    """
    kind, colon, word = target.partition(":")
    try:
        return located(target)[0], not colon and not target.startswith("/")
    except (NotFound, Invalid, Unavailable):
        if kind in _RUNTIMES:
            return word, True
        raise


def _port(port: dict[str, Any]) -> str:
    at = f"{port['host_ip']}:" if port["host_ip"] else ""
    sources = "".join(f" from {cidr}" for cidr in port.get("sources", ()))
    return f"{at}{port['host_port']}->{port['port']}/{port['protocol']}{sources}"


def _limit(endpoint: dict[str, Any]) -> str:
    """Return an endpoint's limits as users write them, "" if it has none; a running agent may be older."""
    given = endpoint.get("bandwidth")
    return limits.spelled(msgspec.convert(given, Bandwidth)) if given else ""


@app.command("list")
def list_(
    network: Annotated[str, typer.Option(metavar="N", help="Only this network.")] = "",
    local: Annotated[bool, typer.Option("--local", help="Only this host.")] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """List the cluster's endpoints."""
    query = f"network={quote(network)}" + ("&local=1" if local else "")
    client, url = Client(socket), f"/v1/endpoints?{query}"
    if output is Format.JSON:
        as_json_list(client.parts(url))
    else:
        _show(client, list(client.items(url)))


@app.command()
def show(
    word: Annotated[str, typer.Argument(metavar="X", help="A container's id or name, or NAME@NETWORK.")],
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Show the endpoints of one container."""
    client = Client(socket)
    found = client.call("GET", f"/v1/endpoints/{part('endpoint', word)}")
    if output is Format.JSON:
        as_json(found)
    else:
        _show(client, found, labels=True)


@app.command()
def label(
    word: Annotated[str, typer.Argument(metavar="X", help="A container's id or name on this host, or NAME@NETWORK.")],
    labels: Annotated[list[str], typer.Argument(metavar="KEY=VALUE|KEY-...", help="To set; KEY- removes a label.")],
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Change labels of a running container; policies count for them at once."""
    gone = [text[:-1] for text in labels if text.endswith("-") and "=" not in text]
    given = pairs([text for text in labels if "=" in text or not text.endswith("-")], "KEY=VALUE")
    change = {"set": given, "remove": gone}
    found = Client(socket).call("PATCH", f"/v1/endpoints/{part('endpoint', word)}/labels", change)
    if output is Format.JSON:
        as_json(found)
        return
    for one in found:
        say(f"{one['name'] or one['id']}: {one['ifname']} on network {one['network']}, labels {_labels(one)}")


def _labels(endpoint: dict[str, Any]) -> str:
    return joined(f"{key}={value}" for key, value in endpoint["labels"].items())


def _show(client: Client, endpoints: Sequence[dict[str, Any]], *, labels: bool = False) -> None:
    across = client.clustered({e["host"] for e in endpoints})
    called = Counter({(e["host"], e["id"]): e["name"] or e["id"] for e in endpoints}.values())
    namesakes = max(called.values(), default=0) > 1
    limited = any(map(_limit, endpoints))
    rows = [
        (
            e["name"] or e["id"][:24],
            *([e["id"][:12]] if namesakes else []),
            *([e["host"] or "-"] if across else []),
            e["ifname"],
            e["network"],
            joined(a.partition("/")[0] for a in e["addresses"]),
            e["mac"] or "-",
            e["host_ifname"] or "-",
            joined(map(_port, e["ports"])),
            *([_limit(e) or "-"] if limited else []),
            *([_labels(e)] if labels else []),
        )
        for e in endpoints
    ]
    columns = ["container", *(["id"] if namesakes else []), *(["host"] if across else [])]
    columns += ["interface", "network", "addresses", "mac", "host end", "ports", *(["bandwidth"] if limited else [])]
    columns += ["labels"] if labels else []
    table(columns, rows, "no endpoint: linkspan attach netns:NAME --network NETWORK")
