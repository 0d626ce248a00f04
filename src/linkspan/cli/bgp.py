"""`linkspan bgp`: this host's sessions, their routes, and why one is not established."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from linkspan.api.client import Client
from linkspan.cli.address import NOT_WELL
from linkspan.cli.output import (
    DEFAULT_SOCKET,
    Format,
    Output,
    Socket,
    ago,
    as_json,
    details,
    joined,
    say,
    table,
)  # fmt: skip
from linkspan.core.states.bgp import REFLECTORS, crowded

app = typer.Typer(no_args_is_help=True, help="BGP: this host's sessions, and the routes they provide.")
Peer = Annotated[str, typer.Argument(metavar="PEER", help="Host of the mesh, or NAME of bgp.peer.NAME.")]


@app.command()
def peers(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """List the sessions: state, since when, and the number of prefixes sent, received, accepted and filtered."""
    found = Client(socket).call("GET", "/v1/bgp/peers")
    if output is Format.JSON:
        as_json(found)
        return
    rows = [
        (
            peer["peer"],
            peer["address"],
            f"{peer['remote_as']}{'' if peer['remote_as'] != peer['local_as'] else ' (iBGP)'}",
            peer["state"],
            ago(peer["since"]) if peer["since"] is not None else "-",
            peer["sent"],
            peer["received"],
            peer["accepted"],
            _filtered(peer),
        )
        for peer in found
    ]
    columns = ("peer", "address", "as", "state", "for", "sent", "received", "accepted", "filtered")
    table(columns, rows, "no BGP session: no network of this host uses the backend bgp, or it has no peer")
    for peer in found:
        if peer["why"]:
            say(f"{peer['peer']}: {peer['why']}")
    if why := crowded(1 + sum(peer["mesh"] for peer in found)):
        say(f"warning: {why}; {REFLECTORS}")


def _filtered(peer: dict[str, Any]) -> str:
    by = ", ".join(f"{number} {rule}" for rule, number in peer["filtered_by"].items())
    return f"{peer['filtered']}{f' ({by})' if by else ''}"


@app.command()
def routes(
    peer: Annotated[str, typer.Option(metavar="PEER", help="Only routes from this peer.")] = "",
    filtered: Annotated[
        bool, typer.Option("--filtered", help="Refused routes, and the rule that refused each.")
    ] = False,
    sent: Annotated[bool, typer.Option("--sent", help="Routes announced to the peer.")] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """List the routes that peers announce; * marks the best of each prefix."""
    flags = [name for name, given in (("filtered", filtered), ("sent", sent)) if given]
    query = urlencode({"peer": peer, **dict.fromkeys(flags, "1")})
    found = Client(socket).call("GET", f"/v1/bgp/routes?{query}")
    if output is Format.JSON:
        as_json(found)
        return
    rows = [
        (
            "*" if route["best"] else "",
            route["prefix"],
            route["peer"] or "-",
            joined(f"{hop['address']} {hop['device']}" for hop in route["next_hops"]),
            " ".join(route["as_path"]) or "-",
            route["local_pref"] if route["local_pref"] is not None else "-",
            route["med"] if route["med"] is not None else "-",
            joined(route["communities"]),
            route["filtered_by"] or route["unusable"] or "-",
        )
        for route in found
    ]
    columns = ("", "prefix", "peer", "next hops", "as path", "pref", "med", "communities", "not taken")
    table(columns, rows, "no route")


@app.command()
def explain(peer: Peer, output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Show why a session is not established, and what to do; exit 3 if it is not established."""
    found = Client(socket).call("GET", f"/v1/bgp/explain/{quote(peer)}")
    if output is Format.JSON:
        as_json(found)
    else:
        since = f", for {ago(found['since'])}" if found["since"] is not None else ""
        ends = f"{found['source'] or 'any'} (AS {found['local_as']}) to {found['address']} (AS {found['remote_as']})"
        details(
            [
                ("peer", found["peer"]),
                ("session", ends),
                ("state", f"{found['state']}{since}"),
                ("why", found["why"]),
                ("do", found["fix"]),
                *(("seen", line) for line in _seen(found["seen"])),
            ]
        )
    if found["why"]:
        raise typer.Exit(NOT_WELL)


def _seen(seen: dict[str, Any]) -> list[str]:
    """Return the evidence, a line each."""
    lines = []
    if seen["device"]:
        by = f" by {seen['gateway']}" if seen["gateway"] else ", on the link"
        lines.append(f"the route uses {seen['device']}{by}")
    for what, words in (("neighbour", "the next hop answers"), ("pings", "the peer answers pings")):
        if seen[what] is not None:
            lines.append(f"{words}: {'yes' if seen[what] else 'no'}")
    if seen["tcp"]:
        lines.append(f"a TCP connection to port 179: {seen['tcp']}")
    lines += [f"{count} segments refused: TCPMD5{why}" for why, count in seen["refusals"].items() if count]
    return lines + [f"BIRD's log: {text}" for text in seen["said"]]
