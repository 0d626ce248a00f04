"""`linkspan network`: create, list, show, update, migrate, delete, allow, disallow."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import typer

from linkspan.api.client import Client, part
from linkspan.backends import BACKENDS, CROSSING
from linkspan.cli.output import (
    DEFAULT_SOCKET,
    Format,
    Output,
    Socket,
    as_json,
    details,
    joined,
    pairs,
    say,
    split,
    table,
)
from linkspan.core.errors import Invalid
from linkspan.core.model import Ipam, NetworkPolicy
from linkspan.runtimes import runtimes

app = typer.Typer(
    no_args_is_help=True, help="Networks: pools of addresses, and the backend that connects their endpoints."
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The network's name.")]
Pools = Annotated[
    list[str], typer.Option("--pool", metavar="CIDR", help="Addresses: 10.244.0.0/16; IPv4, IPv6 or both.")
]
Options = Annotated[
    list[str],
    typer.Option(
        "--opt",
        metavar="KEY=VALUE",
        help="Option of the backend: mode=routed, direct=true (docs/settings.md).",
    ),
]

DefaultPolicy = Annotated[
    str,
    typer.Option(
        "--policy",
        metavar="default-deny|default-allow",
        help="For connections to its containers that no policy is about.",
        show_default=False,
    ),
]


@app.command()
def create(
    name: Name,
    pool: Pools = [],  # noqa: B006 - typer's way
    subnet_len: Annotated[str, typer.Option(metavar="N", help="Block length for each family: 24,64.")] = "",
    backend: Annotated[str, typer.Option(metavar="B", help=f"auto, {', '.join(BACKENDS)}.")] = "auto",
    opt: Options = [],  # noqa: B006 - typer's way
    mtu: Annotated[
        int,
        typer.Option(metavar="N", help="Default: the largest that the uplink carries.", show_default=False),
    ] = 0,
    internal: Annotated[bool, typer.Option("--internal", help="No connection to or from outside.")] = False,
    no_masquerade: Annotated[
        bool, typer.Option("--no-masquerade", help="Packets to the outside keep the container's address.")
    ] = False,
    ipam: Annotated[
        str, typer.Option(metavar="block|exact", help="How hosts get addresses: in blocks, or one by one.")
    ] = "block",
    expose: Annotated[
        list[str],
        typer.Option(
            metavar="RUNTIME",
            help=f"Expose it to these as their network, on every host: {', '.join(runtimes())}.",
        ),
    ] = [],  # noqa: B006 - typer's way
    policy: DefaultPolicy = "default-allow",
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Create a network."""
    for runtime in split(expose):
        _check_word(name, "--expose", runtime, tuple(runtimes()))
    _check_word(name, "--ipam", ipam, get_args(Ipam))
    _check_word(name, "--policy", policy, get_args(NetworkPolicy))
    request = {
        "name": name,
        "pools": split(pool),
        "subnet_len": [_length(text) for text in split([subnet_len])],
        "backend": backend,
        "options": pairs(opt, "--opt"),
        "mtu": mtu,
        "masquerade": not no_masquerade,
        "internal": internal,
        "ipam": ipam,
        "expose": split(expose),
        "policy": policy,
    }
    network = Client(socket).call("POST", "/v1/networks", request)
    if output is Format.JSON:
        as_json(network)
        return
    words = [f"network {name}: backend {network['backend']}"]
    words += [f"{key}={value}" for key, value in network["options"].items() if key in ("mode", "direct")]
    words += [f"pool {joined(network['pools'])}"] if network["pools"] else []
    words += [f"gateway {joined(network['gateways'])}"] if network["gateways"] else []
    words += [policy] if policy == "default-deny" else []
    say(", ".join(words))
    _warn(network)


def _check_word(network: str, option: str, word: str, known: Sequence[str]) -> None:
    """Raise Invalid with the network and the option for a word that the option does not accept."""
    if word not in known:
        choices = f"give {', '.join(known[:-1])} or {known[-1]}"
        raise Invalid(f"create network {network}: {option} {word!r} is unknown", choices)


def _warn(network: dict[str, Any]) -> None:
    for words in network.get("warnings", ()):  # a running agent may be older
        say(f"warning: network {network['name']}: {words}", sys.stderr)


def _length(text: str) -> int:
    if not text.isdigit():
        raise typer.BadParameter(f"{text!r} is not a number", param_hint="--subnet-len")
    return int(text)


@app.command("list")
def list_(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """List the networks."""
    networks = Client(socket).call("GET", "/v1/networks")
    if output is Format.JSON:
        as_json(networks)
        return
    rows = [
        (n["name"], n["backend"], joined(n["pools"]), joined(n["gateways"]), n["mtu"], _flags(n))
        for n in networks
    ]
    table(
        ("name", "backend", "pools", "gateways", "mtu", "options"),
        rows,
        "no network yet: linkspan network create NAME --pool 10.244.0.0/16",
    )


def _flags(network: dict[str, Any]) -> str:
    words = [f"{k}={v}" for k, v in network["options"].items()]
    words += ["internal"] if network["internal"] else []
    words += [] if network["masquerade"] else ["no masquerade"]
    words += ["default-deny"] if network.get("policy") == "default-deny" else []  # a running agent may be older
    words += [f"egress {one['address']}" for one in network.get("egress", ())]  # a running agent may be older
    return joined(words)


@app.command()
def show(name: Name, output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Show one network, with the networks that it may reach."""
    network = Client(socket).call("GET", f"/v1/networks/{part('network', name)}")
    if output is Format.JSON:
        as_json(network)
        return
    allowed = [
        f"{a['source']} -> {a['target']}" + (f" {a['port']}/{a['protocol']}" if a["port"] else "")
        for a in network["allowances"]
    ]
    details(
        [
            ("name", network["name"]),
            ("backend", network["backend"]),
            *_migration(network),
            ("pools", joined(network["pools"])),
            ("gateways", joined(network["gateways"])),
            ("data path", network.get("data_path", "")),  # a running agent may be older
            ("mtu", _mtu(network)),
            ("masquerade", "yes" if network["masquerade"] else "no"),
            ("internal", "yes" if network["internal"] else "no"),
            ("options", joined(f"{k}={v}" for k, v in network["options"].items())),
            ("allowed", joined(allowed)),
            ("policy", network.get("policy", "")),  # a running agent may be older
            *[("egress", f"{e['address']} on {e['host'] or 'no host'}") for e in network.get("exits", ())],
            *([("fast path", fast["words"])] if (fast := network.get("fast")) else []),
        ]
    )


def _migration(network: dict[str, Any]) -> list[tuple[str, str]]:
    move = network["migration"]
    if move is None:
        return []
    found = [("migrates to", move["backend"]), ("not switched", joined(network["not_switched"]))]
    for one in network["progress"]:
        words = [f"receives by {' and '.join(one['receives']) or 'nothing'}"]
        words += [f"this host sends to it by {one['sends']}"] if one["sends"] else []
        words += ["switched" if one["switched"] else "not switched"]
        if not one["alive"]:
            words.append("its agent is silent" if one["alive"] is False else "its agent's liveness is unknown")
        found.append((f"host {one['host']}", "; ".join(words)))
    return found


def _mtu(network: dict[str, Any]) -> str:
    move = network["migration"]
    if move is None or move["mtu"] == network["mtu"]:
        return str(network["mtu"])
    return (
        f"{network['mtu']}, then {move['mtu']}; meanwhile containers send {min(network['mtu'], move['mtu'])}"
    )


@app.command()
def migrate(
    name: Name,
    backend: Annotated[str, typer.Option(metavar="B", help=f"{', '.join(CROSSING)}.")],
    opt: Options = [],  # noqa: B006 - typer's way
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Change a network's backend while it is in use; meanwhile --backend OLD goes back."""
    body = {"backend": backend, "options": pairs(opt, "--opt")}
    network = Client(socket).call("POST", f"/v1/networks/{part('network', name)}/migration", body)
    if output is Format.JSON:
        as_json(network)
        return
    _warn(network)
    if network["migration"] is None:
        print(f"network {name} has migrated to {network['backend']}: all hosts have switched")
    else:
        say(
            f"network {name} migrates from {network['backend']} to {backend}, and can go back until it is done; "
            f"`linkspan network show {name}` lists the hosts that have not switched"
        )


@app.command()
def update(
    name: Name,
    add_pool: Annotated[list[str], typer.Option("--add-pool", metavar="CIDR", help="One more pool.")] = [],  # noqa: B006 - typer's way
    mtu: Annotated[
        int, typer.Option(metavar="N", help="The new MTU, of running containers too.", show_default=False)
    ] = 0,
    opt: Annotated[
        list[str],
        typer.Option(
            "--opt", metavar="KEY=VALUE", help="Refused if it differs: only a migration changes options."
        ),
    ] = [],  # noqa: B006 - typer's way
    policy: DefaultPolicy = "",
    egress: Annotated[
        list[str],
        typer.Option(
            "--egress",
            metavar="IP[,host=H]",
            help="The address by which its packets leave to the outside, on the host that holds it; none: no such one.",
        ),
    ] = [],  # noqa: B006 - typer's way
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Add a pool, or change the MTU, the default policy or the egress addresses of a network."""
    if policy not in ("", *get_args(NetworkPolicy)):
        raise typer.BadParameter(f"{policy!r} is not {' or '.join(get_args(NetworkPolicy))}", param_hint="--policy")
    body = {
        "add_pools": split(add_pool),
        "mtu": mtu,
        "options": pairs(opt, "--opt"),
        "policy": policy or None,
        "egress": [] if egress == ["none"] else egress or None,
    }
    if not any(body.values()) and not egress:
        raise typer.BadParameter("give --add-pool, --mtu, --policy or --egress")
    network = Client(socket).call("PATCH", f"/v1/networks/{part('network', name)}", body)
    if output is Format.JSON:
        as_json(network)
    else:
        default = f", {network['policy']}" if policy else ""
        leaves = f", egress {joined(e['address'] for e in network['egress']) or 'none'}" if egress else ""
        print(f"network {name}: pools {joined(network['pools'])}, MTU {network['mtu']}{default}{leaves}")
        _warn(network)


@app.command()
def delete(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Detach its endpoints first.")] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Delete a network; refuse if it has endpoints."""
    gone = Client(socket).call("DELETE", f"/v1/networks/{part('network', name)}{'?force' if force else ''}")
    if output is Format.JSON:
        as_json(gone)
        return
    print(f"network {name} is deleted")
    cut = gone.get("cut_off", [])  # a running agent may be older
    if cut:
        say(f"cut off: {joined(map(_cut_off, cut))}")
    for engine in sorted({one["engine"] for one in cut if one["engine"]}):
        say(f"while {engine.title()} still shows one there: {engine} network disconnect --force {name} CONTAINER")


def _cut_off(one: dict[str, str]) -> str:
    return f"{one['name'] or one['id'][:24]} on host {one['host']}"


def _allowance(source: str, target: str, port: str) -> dict[str, object]:
    number, _, protocol = port.partition("/")
    if port and (not number.isdigit() or protocol not in ("", "tcp", "udp", "sctp")):
        raise typer.BadParameter(f"{port!r} is not PORT/PROTOCOL, for example 80/tcp", param_hint="--port")
    return {
        "source": source,
        "target": target,
        "port": int(number or 0),
        "protocol": (protocol or "tcp") if port else "",
    }


Source = Annotated[str, typer.Argument(metavar="A", help="Network whose endpoints open connections.")]
Target = Annotated[str, typer.Argument(metavar="B", help="Network of the destination.")]
AllowedPort = Annotated[str, typer.Option("--port", metavar="80/tcp", help="Only to this port.")]


@app.command()
def allow(
    source: Source,
    target: Target,
    port: AllowedPort = "",
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Let endpoints of A open connections to those of B; replies need no second allowance."""
    allowance = Client(socket).call("POST", "/v1/allowances", _allowance(source, target, port))
    as_json(allowance) if output is Format.JSON else print(
        f"{source} may reach {target}{f' on {port}' if port else ''}"
    )


@app.command()
def disallow(
    source: Source,
    target: Target,
    port: AllowedPort = "",
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Remove an allowance; open connections stay open."""
    allowance = Client(socket).call("DELETE", "/v1/allowances", _allowance(source, target, port))
    as_json(allowance) if output is Format.JSON else print(f"{source} may no longer reach {target}")
