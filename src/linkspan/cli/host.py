"""`linkspan host`: list, show, set, drain, undrain, remove."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from linkspan.api.client import Client, part
from linkspan.cli.address import NOT_WELL
from linkspan.cli.output import (
    DEFAULT_SOCKET,
    Format,
    Output,
    Socket,
    ago,
    as_json,
    joined,
    pairs,
    say,
    table,
)
from linkspan.core import namesakes

app = typer.Typer(no_args_is_help=True, help="Hosts: which exist, whether they are alive, what they own.")
_PATIENCE = 20.0
"""Seconds to wait for a key rotation: the other hosts accept the next key within a second."""
Name = Annotated[str, typer.Argument(metavar="NAME", help="The host's name, or its id if several have the name.")]


@app.command("list")
def list_(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """List the hosts of the cluster."""
    hosts = Client(socket).call("GET", "/v1/hosts")
    as_json(hosts) if output is Format.JSON else _show(hosts, _names(hosts))


@app.command()
def show(name: Name, output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Show one host, with its settings."""
    client = Client(socket)
    host = client.call("GET", f"/v1/hosts/{part('host', name)}")
    if output is Format.JSON:
        as_json(host)
        return
    _show([host], _names(client.call("GET", "/v1/hosts")))
    if host["settings"]:
        print()
        table(("setting", "value"), sorted(host["settings"].items()), "")


@app.command()
def peers(
    all_: Annotated[
        bool, typer.Option("--all", help="Between all hosts (at most 40), each pair's worst network; root only.")
    ] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Show round trip and loss of the pings from this host to its peers, in the last minute."""
    found = Client(socket).call("POST" if all_ else "GET", "/v1/paths")
    if output is Format.JSON:
        as_json(found)
        return
    rows = [
        (p["host"], p["peer"], p["network"], p["address"], _milliseconds(p["round_trip"]), f"{p['loss']:.0%}")
        for p in found["paths"]
    ]
    table(("host", "peer", "network", "address", "round trip", "loss"), rows, "nothing is measured yet")
    for one in found["silent"]:
        say(f"host {one['host']}: {one['why']}")


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.2f} ms"


def _names(hosts: list[dict[str, Any]]) -> dict[str, str]:
    """Return the hosts' names by their ids; the id serves as name for a removed host, which has none."""
    return {host["id"]: host["name"] for host in hosts}


def _show(hosts: list[dict[str, Any]], names: dict[str, str]) -> None:
    rows = []
    for host in hosts:
        underlay = host["underlay"]
        way = f"{underlay['ifname']} {joined(underlay['addresses'])}" if underlay else "-"
        leases = joined(f"{lease['network']} {' '.join(lease['prefixes'])}" for lease in host["leases"])
        rows.append((namesakes.called(names, host["id"]), _state(host), way, leases, host["version"] or "-"))
    table(("host", "state", "underlay", "leases", "version"), rows, "no host")
    if any(host["alive"] is None for host in hosts):
        say("unknown: the store does not answer for these hosts now (`linkspan status` shows why); packets still flow")


def _state(host: dict[str, Any]) -> str:
    """Return a host's state in words, with when it was last seen unless it is alive."""
    words = [host["state"]]
    if host["state"] == "drained" and not host["alive"]:
        words.append("unknown" if host["alive"] is None else "silent")
    if words[-1] in ("silent", "unknown") and host["last_seen"] is not None:
        words.append(f"last seen {ago(host['last_seen'])} ago")
    return ", ".join(words)


def _change(name: str, settings: dict[str, str], output: Format, socket: str, said: str) -> None:
    client = Client(socket)
    host = client.call("PATCH", f"/v1/hosts/{part('host', name)}", settings)
    as_json(host) if output is Format.JSON else print(f"host {_called(client, host)}{said}")


def _called(client: Client, host: dict[str, Any]) -> str:
    """Return a host's display name, which distinguishes it from another host with its name."""
    return namesakes.called(_names(client.call("GET", "/v1/hosts")) | _names([host]), host["id"])


@app.command("set")
def set_(
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE",
            help="bgp.as=64513, wireguard.port=51821, .. (docs/settings.md); an empty value unsets it.",
        ),
    ],
    host: Annotated[str, typer.Option(metavar="NAME", help="Which host.")] = "",
    all_: Annotated[
        bool, typer.Option("--all", help="All hosts, also later ones; a host's own value has precedence.")
    ] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Change settings of a host, or of all."""
    if bool(host) == all_:
        raise typer.BadParameter("give one of the two", param_hint="--host, --all")
    changes = pairs(settings, "KEY=VALUE")
    if all_:
        found = Client(socket).call("PATCH", "/v1/hosts", changes)
        as_json(found) if output is Format.JSON else print(f"all hosts: {', '.join(settings)}")
    else:
        _change(host, changes, output, socket, f": {', '.join(settings)}")


@app.command()
def drain(name: Name, output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Stop giving a host new addresses and blocks; its running containers stay."""
    _change(name, {"drained": "1"}, output, socket, " takes no new containers")


@app.command()
def undrain(name: Name, output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Undo a drain."""
    _change(name, {"drained": ""}, output, socket, " takes containers again")


@app.command("rotate-keys")
def rotate_keys(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Change this host's own WireGuard key; packets flow meanwhile."""
    client = Client(socket)
    before = client.call("GET", "/v1/keys")["key"]
    found = client.call("POST", "/v1/keys")
    deadline = time.monotonic() + _PATIENCE
    while found["next"] and time.monotonic() < deadline:
        time.sleep(0.1)
        found = client.call("GET", "/v1/keys")
    as_json(found) if output is Format.JSON else say(_rotated(before, found))
    if found["next"]:
        raise typer.Exit(NOT_WELL)


def _rotated(before: str, found: dict[str, Any]) -> str:
    if found["next"]:
        return (
            f"key {found['next']} is announced, and comes into force by itself once these hosts accept it: "
            f"{joined(found['waiting'])} (are their agents running? if a host is gone: linkspan host remove)"
        )
    done = f"key {found['key']} is in force; other hosts no longer accept {before}"
    if found.get("used", True):
        return done
    return (
        f"{done}\nno network has backend wireguard, so neither key encrypted anything "
        "(for IPsec, credentials are files: write new ones)"
    )


@app.command()
def remove(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Also if it is alive.")] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Remove a host and release all that it owns. Others may get its addresses, so make sure that it is off."""
    client = Client(socket)
    names = _names(client.call("GET", "/v1/hosts"))
    id_ = namesakes.meant(names, name) or name  # a host without a record, known only by its id
    called = namesakes.called(names, id_) if id_ in names else id_
    gone = client.call("DELETE", f"/v1/hosts/{part('host', id_)}{'?force' if force else ''}")
    as_json(gone) if output is Format.JSON else print(f"host {called} is removed, and its blocks are free")
    if gone["risk"]:
        say(f"careful: {gone['risk']}", sys.stderr)
