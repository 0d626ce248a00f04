"""`linkspan drops`: connections that policies refused."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import msgspec
import typer

from linkspan.api.client import Client
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, say
from linkspan.core.escapes import escaped


def drops(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new ones until interrupted.")] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Show connections that policies refuse on this host, with policy and line; at most 20 packets a second.

    The agent sees them while somebody follows, or always by the setting `log_drops`. Without --follow: the last 1,000.
    """
    lines = Client(socket).lines(f"/v1/drops{'?follow' if follow else ''}")
    seen = False
    for line in lines:
        seen = True
        if output is Format.JSON:
            print(escaped(line.decode().rstrip()), flush=True)
        else:
            say(_sentence(Client.shown(msgspec.json.decode(line))))
            sys.stdout.flush()
    if not seen and not follow and output is Format.TABLE:
        say("nothing was seen: linkspan drops --follow, or the setting log_drops = true")


def _sentence(drop: dict[str, Any]) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(drop["at"]))
    ends = " > ".join(_end(drop[end], drop[f"{end}_address"]) for end in ("from", "to"))
    by = drop["by"]
    whose = "its policy has changed since" if by is None else f"policy {by['policy']}"
    if by is not None and not by["line"]:
        whose = by["policy"]  # a network's default
    elif by is not None:
        whose += f" line {by['line']}"
    return f"{at}  {'staged ' if drop['staged'] else 'refused'}  {ends} {drop['port']}: {whose}"


def _end(name: str, address: str) -> str:
    return address if name == address else f"{name} ({address})"
