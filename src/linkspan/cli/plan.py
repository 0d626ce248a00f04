"""`linkspan plan` and `diff`: the desired state of this host, and its drift."""

from __future__ import annotations

import enum
from typing import Annotated, Any
from urllib.parse import quote

import typer

from linkspan.api.client import Client
from linkspan.cli.address import NOT_WELL
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, as_json, table


class PlanFormat(enum.StrEnum):
    """The value of plan's --output."""

    COMMANDS = "commands"
    TABLE = "table"
    JSON = "json"


def plan(
    network: Annotated[str, typer.Option(metavar="N", help="Only this network.")] = "",
    output: Annotated[
        PlanFormat,
        typer.Option("--output", "-o", metavar="commands|table|json", help="Commands to type, a table, or JSON."),
    ] = PlanFormat.COMMANDS,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Show every desired object of this host, as the command that makes it, with its reason."""
    lines = Client(socket).call("GET", f"/v1/plan?network={quote(network)}")
    if output is PlanFormat.JSON:
        as_json(lines)
    elif output is PlanFormat.TABLE:
        rows = [
            (line["kind"], line["key"], "yes" if line["present"] else "no", line["why"]) for line in lines
        ]
        table(("kind", "key", "present", "why"), rows, "nothing: there is no network")
    else:
        reason = ""
        for line in lines:
            if line["why"] != reason:
                reason = line["why"]
                print(f"# {reason}")
            print(line["command"])


_FOUND = {"added": "missing", "changed": "different", "removed": "not wanted"}
"""State of an object now, by the repair's word for the change."""


def diff(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Show drift: objects that differ from their desired state, on the host and in containers; exit 3 if any do.

    linkspan repairs drift on the host. Inside a container it repairs limits of bandwidth only, and `status` does
    not look there.
    """
    found = Client(socket).call("GET", "/v1/diff")
    if output is Format.JSON:
        as_json(found)
    else:
        _show_differences(found)
    if found["put"] or found["delete"]:
        raise typer.Exit(NOT_WELL)


def _show_differences(found: dict[str, Any]) -> None:
    every = [
        (item["inside"], action, item["kind"], item["key"], _found(item))
        for action in ("put", "delete")
        for item in found[action]
    ]
    inside = sorted((row for row in every if row[0]), key=lambda row: row[0])
    on_host = [row[1:] for row in every if not row[0]]
    if on_host or not inside:
        table(("to do", "kind", "key", "it is"), on_host, "no drift: this host matches its desired state")
    if on_host and inside:
        print()
    if inside:
        table(("inside", "to do", "kind", "key", "it is"), inside, "")
    if note := found.get("note"):
        print(note)


def _found(item: dict[str, Any]) -> str:
    """Return the state of an object now, and in what it differs."""
    differs = ", ".join(f"{one['field']} {one['is']}, not {one['should']}" for one in item["differs"])
    return f"{_FOUND[item['what']]}: {differs}" if differs else _FOUND[item["what"]]
