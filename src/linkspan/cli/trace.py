"""`linkspan trace`: a packet's path, hop by hop."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from linkspan.api.client import Client
from linkspan.cli.address import NOT_WELL
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, as_json, say, step, table
from linkspan.core.errors import Invalid, LinkspanError, Unavailable

_WHO = "Container name (or DNS name) or id, NAME@NETWORK, an IP address, host:NAME (host: this one)."
Source = Annotated[str, typer.Argument(metavar="SRC", help=_WHO)]
Target = Annotated[str, typer.Argument(metavar="DST", help=_WHO)]


def trace(
    source: Source,
    target: Target,
    port: Annotated[str, typer.Option(metavar="N/tcp", help="Trace a connection to this port; default: a ping.")] = "",
    live: Annotated[
        bool, typer.Option("--live", help="Send one packet, and show where it was seen.")
    ] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
    pcap: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="As --live, and write for Wireshark what each device saw of the packet."),
    ] = None,
) -> None:
    """Show a packet's path, hop by hop and back: reachable, broken at a hop, or unknown with the reason.

    If the walk alone cannot decide, root's trace also sends a packet, as with --live. Exit 3 unless
    reachable. Nobody can be asked outside the cluster, so there only an answered packet proves reachability.
    """
    query = urlencode({"source": source, "target": target, "port": port})
    if pcap is None:
        found, live = _traced(Client(socket), f"/v1/trace?{query}", live)
    else:
        found, live = Client(socket).call("POST", f"/v1/trace?{query}&pcap=1"), True
        _written(found.pop("pcap", None), pcap)
    if output is Format.JSON:
        as_json(found)
    else:
        across = len({hop["host"] for hop in (*found["hops"], *found["reply_hops"])}) > 1
        _show_way("there", found["hops"], live, across)
        if found["reply_hops"]:
            print()
            _show_way("back", found["reply_hops"], live, across)
        print()
        if found["reachable"]:
            limit = f", with packets of up to {found['path_mtu']} bytes" if found["path_mtu"] else ""
            say(f"reachable{limit}")
            if found["reason"]:
                say(f"note: {found['reason']}")
        elif found["verdict"] == "broken":
            say(f"broken at {found['broken_at']}: {found['reason']}")
        else:
            say("unknown whether it is reachable; packets may pass nevertheless:")
            for one in found["unknown"]:
                say(f"  at {one['at']}: {one['why']}")
        if found.get("listens") is False:
            say(f"note: nothing listens on port {port} there: start the service, or correct --port")
    if not found["reachable"]:
        raise typer.Exit(NOT_WELL)


def _traced(client: Client, url: str, live: bool) -> tuple[dict[str, Any], bool]:
    """Return the trace, and whether a packet was sent for it: ``live`` asked for it, or the walk needs it."""
    if live:
        return client.call("POST", url), True
    found = client.call("GET", url)
    if found["verdict"] != "unknown" or os.geteuid():
        return found, False
    try:
        with step("the walk alone cannot decide: sending one packet"):
            return client.call("POST", url), True
    except Invalid:  # no packet can be sent from there, or with this protocol
        return found, False


def _written(captured: str | None, path: Path) -> None:
    if captured is None:
        raise Unavailable("this host's agent is older, and captures nothing", "upgrade linkspan and restart the agent")
    try:
        path.write_bytes(base64.b64decode(captured))
    except OSError as error:
        raise LinkspanError(f"cannot write {path}: {error.strerror}", "give another file") from error


def _show_way(way: str, hops: list[dict[str, Any]], live: bool, across: bool) -> None:
    rows = []
    for number, hop in enumerate(hops, 1):
        seen = {True: "seen", False: "not seen", None: "-"}[hop["seen"]]
        device = f"{hop['device']} > {hop['port']}" if hop["port"] else hop["device"]
        row = [number, *([hop["host"]] if across else []), hop["namespace"], device or "-", hop["action"]]
        row += [*([seen] if live else []), *([hop["mtu"]] if across else [])]
        rows.append([*row, hop["detail"], " / ".join(hop["headers"][1:])])
    columns = [way, *(["host"] if across else []), "in", "device", "action"]
    columns += [*(["packet"] if live else []), *(["mtu"] if across else []), "detail", "headers"]
    table(columns, rows, f"{way}: no hop")
