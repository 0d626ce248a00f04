"""`linkspan web`: a page that shows the network."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from linkspan.api.client import Client
from linkspan.cli.output import DEFAULT_SOCKET, Socket
from linkspan.lab import record
from linkspan.web import listening, serving


def web(
    lab: Annotated[str, typer.Option("--lab", metavar="NAME", help="Show this lab instead of this host.")] = "",
    listen: Annotated[
        str, typer.Option(metavar="ADDR:PORT", help="Where to listen; port 0: a free one.")
    ] = listening.DEFAULT,
    cert: Annotated[
        str, typer.Option(metavar="FILE", help="Certificate (PEM), for an address that other machines reach.")
    ] = "",
    key: Annotated[str, typer.Option(metavar="FILE", help="The certificate's key (PEM).")] = "",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Show the network on a page, live: who reaches whom, which way, and why not.

    The first line is a link, which counts once and for a minute. Enter prints another one. The page needs no root:
    members of the group linkspan may see it. Only root's page can send real packets.
    """
    others: dict[str, str] = {}
    if lab:
        found = record.load(lab)
        others = {host.name: found.socket(host.name) for host in found.hosts}
        socket = next(iter(others.values()))
    place = listening.place(listen, cert, key)
    Client(socket).call("GET", "/v1/status")  # a user who may not ask learns it here, and not from an empty page
    asyncio.run(serving.serve(place, socket, others, lab, opens_browser=not no_browser, say=_print_now))


def _print_now(link: str) -> None:
    print(link, flush=True)
    if sys.stdin is not None and sys.stdin.isatty():
        print("Enter: another link; Ctrl-C: end", file=sys.stderr)
