"""`linkspan agent`: the node agent in the foreground."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import msgspec
import typer

from linkspan.cli.output import Format, Output, as_json
from linkspan.core import config
from linkspan.core.errors import Denied


def agent(
    config_file: Annotated[
        str,
        typer.Option("--config", metavar="FILE", help=f"A TOML file of settings; by default {config.CONFIG_FILE}."),
    ] = "",
    state_dir: Annotated[
        str, typer.Option(metavar="DIR", help="Where the agent keeps what it must remember.")
    ] = "",
    socket: Annotated[
        str, typer.Option(metavar="PATH", envvar="LINKSPAN_SOCKET", help="The API's unix socket.")
    ] = "",
    store: Annotated[
        str,
        typer.Option(
            metavar="URL", help="etcd://H1:2379,H2:2379/PREFIX, or sqlite:///FOLDER; by default in the state folder."
        ),
    ] = "",
    host_id: Annotated[str, typer.Option(metavar="ID", help="This host's id and name in the cluster.")] = "",
    underlay: Annotated[
        str, typer.Option(metavar="IFNAME|can-reach=IP", help="The way to the other hosts.")
    ] = "",
    advertise: Annotated[
        list[str],
        typer.Option(
            metavar="ADDR[:PORT]", help="An address by which other hosts reach this one; none: a NAT lets nobody in."
        ),
    ] = [],  # noqa: B006 - typer's way
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = "",
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show every key with its value, and end.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Run the node agent in the foreground, in this network namespace."""
    overrides = {"state_dir": state_dir, "socket": socket, "store": store, "log_level": log_level,
        "host_id": host_id, "underlay": underlay, "advertise": list(advertise)}
    given = config.given(config_file, config.CONFIG_FILE, overrides)
    if print_config and output is Format.TABLE:  # first, so that what is refused is seen
        print(config.as_toml(config.shown(config.Config, given)), end="", flush=True)
    settings = config.checked(given)
    if print_config:
        if output is Format.JSON:
            as_json(settings)
        return
    if os.geteuid():
        raise Denied("the agent changes this machine's network, which needs root", "sudo linkspan agent")
    environment = os.environ | {
        config.SETTINGS: msgspec.json.encode(settings).decode(),
        "MALLOC_ARENA_MAX": "2",
    }
    # In this process's place: typer and rich would stay in the agent's memory for good.
    os.execve(sys.executable, [sys.executable, "-m", "linkspan.daemon"], environment)  # noqa: S606 - no shell is meant
