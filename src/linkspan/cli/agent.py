"""`linkspan agent`: run the node agent in the foreground."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from linkspan.cli.output import Format, Output, as_json
from linkspan.core import config
from linkspan.core.errors import Denied


def agent(
    config_file: Annotated[
        str,
        typer.Option(
            "--config",
            metavar="FILE",
            envvar=config.CONFIG,
            help=f"TOML file with settings; default: {config.CONFIG_FILE}.",
        ),
    ] = "",
    state_dir: Annotated[
        str, typer.Option(metavar="DIR", help="Folder for the agent's persistent state.")
    ] = "",
    socket: Annotated[
        str, typer.Option(metavar="PATH", envvar="LINKSPAN_SOCKET", help="The API's unix socket.")
    ] = "",
    store: Annotated[
        str,
        typer.Option(
            metavar="URL", help="etcd://H1:2379,H2:2379/PREFIX, or sqlite:///FOLDER; default: in the state folder."
        ),
    ] = "",
    host_id: Annotated[str, typer.Option(metavar="ID", help="This host's id and name in the cluster.")] = "",
    underlay: Annotated[
        str, typer.Option(metavar="IFNAME|can-reach=IP", help="Interface or route to the other hosts.")
    ] = "",
    advertise: Annotated[
        list[str],
        typer.Option(
            metavar="ADDR[:PORT]", help="Address at which other hosts reach this one; none: a NAT lets nobody in."
        ),
    ] = [],  # noqa: B006 - typer's way
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = "",
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show every key with its value, and exit.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Run the node agent in the foreground, in this network namespace."""
    overrides = {"state_dir": state_dir, "socket": socket, "store": store, "log_level": log_level,
        "host_id": host_id, "underlay": underlay, "advertise": list(advertise)}
    given = config.given(config_file, config.CONFIG_FILE, overrides)
    if print_config and output is Format.TABLE:  # first, so that errors are visible
        print(config.as_toml(config.shown(config.Config, given)), end="", flush=True)
    settings = config.sound(given, config.checked, config_file or config.CONFIG_FILE, overrides)
    if print_config:
        if output is Format.JSON:
            as_json(settings)
        return
    if os.geteuid():
        raise Denied("the agent changes this machine's network, which needs root", "sudo linkspan agent")
    command, variables = config.process(settings, config_file)
    # Replace this process: otherwise typer and rich would stay in the agent's memory.
    os.execve(command[0], command, os.environ | variables)  # noqa: S606 - no shell is meant
