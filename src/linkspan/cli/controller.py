"""`linkspan controller`: program an underlay's switches and routers, and show their state."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import msgspec
import typer

from linkspan.agent import file_ownership
from linkspan.api.client import Client, started
from linkspan.cli.address import NOT_WELL
from linkspan.cli.output import Format, Output, ago, as_json, details, joined, pairs, split, table
from linkspan.controller import settings
from linkspan.core import config
from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.core.own_command import own_command
from linkspan.runtimes import systemd

app = typer.Typer(help="SDN: program the underlay's switches and routers, and see what they do.")
Socket = Annotated[
    str,
    typer.Option(
        "--socket", metavar="PATH", envvar="LINKSPAN_CONTROLLER_SOCKET", help="The controller's unix socket."
    ),
]
SwitchName = Annotated[str, typer.Option("--switch", metavar="NAME", help="Only this switch.")]


@app.callback(invoke_without_command=True)
def controller(
    context: typer.Context,
    config_file: Annotated[
        str,
        typer.Option("--config", metavar="FILE", help=f"TOML file with settings; default: {settings.FILE}."),
    ] = "",
    store: Annotated[str, typer.Option(metavar="URL", help="The agents' store.")] = "",
    switch: Annotated[
        list[str],
        typer.Option(metavar="NAME=ADDRESS", help="tcp:IP:PORT, ssl:IP:PORT or unix:/PATH; repeatable."),
    ] = [],  # noqa: B006 - typer's way
    router: Annotated[
        list[str], typer.Option(metavar="NAME=ADDRESS", help="FRR by ssh:USER@HOST[:PORT] or vtysh:.")
    ] = [],  # noqa: B006 - typer's way
    name: Annotated[str, typer.Option(metavar="NAME", help="This controller's name, if there are several.")] = "",
    state_dir: Annotated[str, typer.Option(metavar="DIR", help="Folder for its snapshot.")] = "",
    socket: Annotated[str, typer.Option(metavar="PATH", help="Unix socket that serves its status.")] = "",
    metrics: Annotated[str, typer.Option(metavar="ADDRESS:PORT", help="For Prometheus.")] = "",
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = "",
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show every key with its value, and exit.")
    ] = False,
) -> None:
    """Run a controller in the foreground; several may run, and one of them is active."""
    if context.invoked_subcommand is not None:
        return
    overrides = {"store": store, "name": name, "state_dir": state_dir, "socket": socket, "metrics": metrics,
        "log_level": log_level, "switches": pairs(split(switch), "--switch", "NAME=ADDRESS"),
        "routers": pairs(split(router), "--router", "NAME=ADDRESS")}
    given = config.given(config_file, settings.FILE, overrides)
    if print_config:  # first, so that errors are visible
        print(config.as_toml(config.shown(settings.Settings, given)), end="", flush=True)
    found = config.sound(given, settings.checked, config_file or settings.FILE, overrides)
    if print_config:
        return
    settings.complete(found)
    environment = os.environ | {settings.ENVIRONMENT: msgspec.json.encode(found).decode()}
    # Replace this process, like the agent: the controller needs neither typer nor rich.
    command = own_command("linkspan.controller.daemon")
    os.execve(command[0], command, environment)  # noqa: S606 - no shell is meant


def _call(socket: str, url: str) -> Any:
    try:
        return Client(socket).call("GET", url)
    except Unavailable as error:
        raise LinkspanError(
            error.message.replace("agent", "controller"),
            started(socket, "controller", "linkspan-controller"),
        ) from error


@app.command()
def status(output: Output = Format.TABLE, socket: Socket = settings.SOCKET) -> None:
    """Show the active controller, switches, links, hosts' ports, and problems; exit 3 if there are any."""
    found = _call(socket, "/v1/controller")
    if output is Format.JSON:
        as_json(found)
    else:
        _show(found)
    if not _well(found):
        raise typer.Exit(NOT_WELL)


def _well(found: dict[str, Any]) -> bool:
    told = [*found["switches"], *found["routers"], *found["hosts"]]
    quiet = not any(one["problem"] for one in told) and not found["problems"]
    return quiet and bool(found["leader"]) and not found["store"]["problem"]


def _show(found: dict[str, Any]) -> None:
    place = "active" if found["active"] else f"standing by; {found['leader'] or 'nobody'} is active"
    store = found["store"]
    url = store["url"].partition("?")[0]
    details([("controller", f"{found['controller']}, {place}"), ("store", store["problem"] or url)])
    print()
    rows: list[tuple[object, ...]] = [
        (s["name"], s["address"], s["state"], f"{s['ports_up']} of {s['ports']}", s["flows"], s["healed"])
        for s in found["switches"]
    ]
    table(("switch", "address", "state", "ports up", "flows", "healed"), rows, "no switch")
    if found["routers"]:
        print()
        rows = [(r["name"], r["address"], r["state"], r["healed"]) for r in found["routers"]]
        table(("router", "address", "state", "healed"), rows, "")
    if found["links"]:
        print()
        table(("link", "port", "to", "state"), [tuple(one.values()) for one in found["links"]], "")
    print()
    rows = [(h["host"], h["mac"] or "-", h["switch"] or "-", h["port"] or "-") for h in found["hosts"]]
    table(("host", "mac", "switch", "port"), rows, "no host has a network of backend sdn")
    if found["prefixes"]:
        print()
        rows = [
            (p["prefix"], p["network"], p["host"], p["sent"]["packets"], p["received"]["packets"])
            for p in found["prefixes"]
        ]
        table(("prefix", "network", "host", "packets sent", "received"), rows, "")
    if dropped := [one for one in found["dropped"] if one["packets"]]:
        print()
        rows = [(one["packets"], one["switch"], one["kind"], one["what"]) for one in dropped]
        table(("dropped", "switch", "kind", "what the flow does"), rows, "")
    _say(found)


def _say(found: dict[str, Any]) -> None:
    lines = [one["problem"] for one in (*found["switches"], *found["routers"]) if one["problem"]]
    lines += [f"host {h['host']}: {h['problem']}" for h in found["hosts"] if h["problem"]]
    lines += [text for text in found["problems"] if not any(text in line for line in lines)]
    if lines:
        print()
    for line in lines:
        print(f"problem: {line}")
    if heals := found["heals"][-3:]:
        print()
        rows = [(f"{ago(h['at'])} ago", h["device"], h["what"], h["key"]) for h in heals]
        table(("healed", "device", "what", "object"), rows, "")


@app.command()
def flows(switch: SwitchName = "", output: Output = Format.TABLE, socket: Socket = settings.SOCKET) -> None:
    """List the switches' flows, also foreign ones, in the order of matching; exit 3 if a switch does not answer."""
    found = _call(socket, f"/v1/controller/flows?switch={switch}")
    if output is Format.JSON:
        as_json(found["flows"])
    elif found["flows"] or not found["unknown"]:
        rows = [
            (f["switch"], f["table"], f["priority"], joined(f["match"]).replace(", ", ","), f["packets"],
             f["what"] or "somebody else's: " + f["actions"])
            for f in found["flows"]
        ]  # fmt: skip
        table(("switch", "table", "priority", "match", "packets", "what it does"), rows, "no flow")
    _name_silent(found)


@app.command()
def plan(switch: SwitchName = "", output: Output = Format.TABLE, socket: Socket = settings.SOCKET) -> None:
    """Show every desired flow and route of the devices, as commands; exit 3 if a device does not answer."""
    found = _call(socket, f"/v1/controller/plan?switch={switch}")
    if output is Format.JSON:
        as_json(found["plan"])
    else:
        for one in found["plan"]:
            print(f"{one['command']}  # {one['device']}: {one['why']}{'' if one['present'] else ' (missing)'}")
    _name_silent(found)


def _name_silent(found: dict[str, Any]) -> None:
    """Name on stderr the devices that do not answer, because stdout has only the others; exit 3 if there are any."""
    for one in found["unknown"]:
        print(f"not known: {one['device']}: {one['problem']}", file=sys.stderr)
    if found["unknown"]:
        raise typer.Exit(NOT_WELL)


@app.command()
def unit() -> None:
    """Print a systemd unit of the controller, for /etc/systemd/system/linkspan-controller.service."""
    executable = file_ownership.command()
    if why := file_ownership.writer(executable):
        copy = f"{file_ownership.COPY}/bin/linkspan"
        fix = f"`linkspan install systemd` makes a copy that only root may write; then print this with {copy}"
        print(f"note: root would run files that other users may write: {why}; {fix}", file=sys.stderr)
    print(systemd.controller_unit(executable), end="")


@app.command()
def diff(output: Output = Format.TABLE, socket: Socket = settings.SOCKET) -> None:
    """Show drift of the devices; exit 3 if there is any, or if a device does not answer."""
    found = _call(socket, "/v1/controller/diff")
    if output is Format.JSON:
        as_json(found)
    else:
        rows = [(word, one["device"], one["key"]) for word in ("put", "delete") for one in found[word]]
        table(("change", "device", "object"), rows, f"no drift{' elsewhere' if found['unknown'] else ''}")
        for one in found["unknown"]:
            print(f"not known: {one['device']}: {one['problem']}")
    if any(found.values()):
        raise typer.Exit(NOT_WELL)
