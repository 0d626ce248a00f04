"""`linkspan address` (alias `ip`): owners of addresses, reservations, and leaks."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from linkspan.api.client import Client
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, as_json, say, table

app = typer.Typer(no_args_is_help=True, help="Addresses: who has which, and whether that is true.")

NOT_WELL = 3
Network = Annotated[str, typer.Argument(metavar="NETWORK", help="The network.")]
Cidr = Annotated[str, typer.Argument(metavar="CIDR", help="Addresses of one of its pools: 10.244.0.64/28.")]


@app.command("list")
def list_(
    network: Annotated[str, typer.Option(metavar="N", help="Only this network.")] = "",
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """List the addresses that are not free."""
    client = Client(socket)
    _show(client, client.call("GET", f"/v1/addresses?network={quote(network)}"), output)


@app.command()
def show(
    ip: Annotated[str, typer.Argument(metavar="IP")],
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Show who has an address."""
    client = Client(socket)
    _show(client, client.call("GET", f"/v1/addresses/{quote(ip)}"), output)


def _show(client: Client, holdings: list[dict[str, Any]], output: Format) -> None:
    if output is Format.JSON:
        as_json(holdings)
        return
    across = client.clustered({h["host"] for h in holdings if h["host"]})
    rows = [
        (
            h["address"],
            h["network"],
            h["state"],
            h["holder"] or "-",
            *([h["host"] or "-"] if across else []),
            h["ifname"] or "-",
        )
        for h in holdings
    ]
    columns = ("address", "network", "state", "holder", *(["host"] if across else []), "interface")
    table(columns, rows, "no address is in use")


@app.command()
def reserve(
    network: Network, cidr: Cidr, output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET
) -> None:
    """Reserve addresses: they are given only if --ip asks for them."""
    made = Client(socket).call("POST", "/v1/reservations", {"network": network, "cidr": cidr})
    if output is Format.JSON:
        as_json(made)
        return
    print(f"{made['cidr']} of network {network} is reserved")
    for one in made.get("held", ()):  # a running agent may be older
        say(f"{one['address']} is in use: {one['holder']} keeps it until its detach")


@app.command()
def unreserve(
    network: Network, cidr: Cidr, output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET
) -> None:
    """Release reserved addresses."""
    gone = Client(socket).call("DELETE", "/v1/reservations", {"network": network, "cidr": cidr})
    as_json(gone) if output is Format.JSON else print(f"{cidr} of network {network} is no longer reserved")


@app.command()
def check(
    fix: Annotated[
        bool, typer.Option("--fix", help="Free leaked addresses, remove orphans and duplicates.")
    ] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Compare the allocated addresses with the running containers of this host; exit 3 if they differ."""
    found = Client(socket).call("POST" if fix else "GET", "/v1/address-check")
    if output is Format.JSON:
        as_json(found)
    else:
        rows = [
            (kind, f["address"] or "-", f["network"] or "-", f["holder"], f["why"])
            for kind in ("leaked", "duplicate", "orphaned")
            for f in found[kind]
        ]
        table(
            ("finding", "address", "network", "holder", "why"),
            rows,
            "ok: every allocated address belongs to a running container on this host",
        )
    if not found["ok"]:
        raise typer.Exit(NOT_WELL)
