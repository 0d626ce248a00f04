"""`linkspan cluster rotate-ca`: replaces the authorities of linkspan's own etcd, and shows how far that is."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from linkspan.api.client import Client
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, as_json
from linkspan.core.errors import LinkspanError

AGAIN = 0.5
"""Seconds between two looks."""
PATIENCE = 90.0
"""Seconds for which the agent or etcd may not answer: etcd restarts, and the agent may."""
SAYS_AFTER = 5.0
"""Seconds after which hosts are named that are waited for."""
STEPS = {
    "trust": "all trust the new authorities beside the old ones",
    "sign": "the new authorities sign, and all get new certificates",
    "drop": "the old authorities are trusted no longer",
}


def rotate_ca(
    clients: Annotated[bool, typer.Option("--clients", help="The authority of hosts and servers alone.")] = False,
    peers: Annotated[bool, typer.Option("--peers", help="The authority of voters among themselves alone.")] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Do not wait for this host: it must join again. May be repeated."),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Only begin: it goes on by itself.")] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Replace the authorities that sign certificates, on a voter, while packets flow.

    It goes on by itself if the command ends. Typed again, it shows how far it is. Hosts that are away are waited for.
    Tokens that were made before are revoked.
    """
    kinds = [name for name, wanted in (("clients", clients), ("peers", peers)) if wanted]
    client = Client(socket)
    found = client.call("POST", "/v1/cluster/rotation", {"kinds": kinds, "without": without or []})
    if not no_wait:
        _follow(client, found)
    told = {key: found[key] for key in ("id", "kinds", "without")} | {"ended": not no_wait}
    if output is Format.JSON:
        as_json(told)
        return
    what = " and ".join(f"the {kind[:-1]} authority" for kind in found["kinds"])
    if no_wait:
        print(f"{what}: the rotation goes on by itself; linkspan cluster rotate-ca shows how far it is")
        return
    tokens = "; tokens that were made before are revoked: linkspan cluster token create" * ("clients" in found["kinds"])
    print(f"replaced: {what}{tokens}")


def _follow(client: Client, found: dict[str, Any]) -> None:
    """Say how far it is until it has ended. Raises LinkspanError if nobody answers for PATIENCE seconds."""
    id_, said, step, begun, answered = found["id"], "", "", time.monotonic(), time.monotonic()
    while found["id"] == id_:
        if found["step"] != step:
            step, begun, said = found["step"], time.monotonic(), ""
            print(f"  ..  {STEPS.get(step, step)}", file=sys.stderr)
        words = waiting(found)
        if words != said and time.monotonic() - begun > SAYS_AFTER:
            said = words
            print(f"      {words}", file=sys.stderr)
        time.sleep(AGAIN)
        try:
            found = client.call("GET", "/v1/cluster/rotation")
            answered = time.monotonic()
        except LinkspanError:
            if time.monotonic() - answered > PATIENCE:
                raise


def waiting(found: dict[str, Any]) -> str:
    """Return for whom the rotation waits."""
    if found["voters"]:
        return f"waiting for voters: {', '.join(found['voters'])}"
    if found["hosts"]:
        names = ", ".join(found["hosts"])
        return f"waiting for hosts: {names}; start their agents, or leave them out by --without HOST (they join again)"
    return "waiting for the next step"
