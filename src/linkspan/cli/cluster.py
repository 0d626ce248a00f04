"""`linkspan cluster`: show, set, finalize; and the commands of `founding`, `recovery` and `authorities`."""

from __future__ import annotations

from typing import Annotated

import typer

from linkspan.api.client import Client
from linkspan.cli import authorities, founding, recovery, usage
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, as_json, details, table
from linkspan.cli.status import disputes

app = typer.Typer(no_args_is_help=True, help="Settings of the whole cluster: schema, reclaiming, conflicts.")
app.add_typer(founding.tokens, name="token", cls=usage.Commands)


@app.command()
def show(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Show the cluster's id, the settings of all hosts, and conflicts between two hosts."""
    found = Client(socket).call("GET", "/v1/cluster")
    if output is Format.JSON:
        as_json(found)
        return
    schema, after = found["schema"], found["reclaim_after"]
    details(
        [
            ("id", found["id"]),
            ("schema", f"{schema['writes']} is written; this host supports {schema['reads']}"),
            ("reclaim after", f"{after:g} s of silence" if after else "never"),
        ]
    )
    print()
    rows = [(host["name"], host["version"] or "-", host["reads"]) for host in found["hosts"]]
    table(("host", "version", "schema it knows"), rows, "no host")
    if found["settings"]:
        print()
        table(("setting of all hosts", "value"), sorted(found["settings"].items()), "")
    disputes(found["disputes"])


@app.command("set")
def set_(
    reclaim_after: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Seconds without the store after which a host gives up its addresses for others: "
            "60 to 31622400 (366 days); 0: never.",
        ),
    ],
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Change settings of all hosts."""
    found = Client(socket).call("PATCH", "/v1/cluster", {"reclaim_after": reclaim_after})
    said = (
        f"silent hosts give up their addresses after {reclaim_after:g} s"
        if reclaim_after
        else "nothing is reclaimed"
    )
    as_json(found) if output is Format.JSON else print(said)


@app.command()
def finalize(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """End an upgrade: write the newest schema of records that all hosts support. Older agents cannot join then."""
    found = Client(socket).call("POST", "/v1/cluster/schema")
    as_json(found) if output is Format.JSON else print(
        f"schema {found['schema']['writes']} is written from now on"
    )


for _command in (
    founding.init,
    founding.join,
    founding.members,
    founding.forget,
    recovery.snapshot,
    recovery.restore,
    recovery.recover,
    founding.promote,
    founding.demote,
    founding.leave,
):
    app.command()(_command)
app.command("rotate-ca")(authorities.rotate_ca)
