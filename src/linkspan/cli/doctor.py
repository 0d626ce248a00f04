"""`linkspan doctor`: problems of this machine, or between hosts."""

from __future__ import annotations

import os
from typing import Annotated

import msgspec
import typer

from linkspan.api.client import Client
from linkspan.cli.address import NOT_WELL
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, as_json, step, table
from linkspan.core.errors import Unavailable
from linkspan.runtimes import checks as checks_of_runtimes


def doctor(
    peers: Annotated[
        bool,
        typer.Option(
            "--peers", help="All hosts probe the underlay to each other: 5 s (1,000 hosts: 3 minutes), root only."
        ),
    ] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Check this machine and its runtimes, each finding with cause and fix; exit 3 if a check fails."""
    client = Client(socket)
    try:
        checks = client.call("GET", "/v1/doctor")
        if peers:
            with step("all hosts probe the underlay to each other"):
                checks += client.call("POST", "/v1/doctor/peers")
    except Unavailable as error:
        checks = [{"check": "agent", "status": "fail", "detail": error.message, "fix": error.hint}]
        if not os.geteuid():  # the kernel shows too little to users other than root
            checks += _without_agent()
    if output is Format.JSON:
        as_json(checks)
    else:
        rows = [(c["status"], c["check"], c["detail"], c["fix"] or "-") for c in checks]
        table(("status", "check", "detail", "fix"), rows, "no check")
    if any(check["status"] == "fail" for check in checks):
        raise typer.Exit(NOT_WELL)


def _without_agent() -> list[dict[str, str]]:
    """Return the machine's checks, made in this process."""
    # Imported here, because they use kernel libraries that no other command needs.
    from linkspan.diagnose.doctor import doctor as machine
    from linkspan.diagnose.doctor.checks import Surroundings
    from linkspan.kernel.io.namespaces import Namespaces

    return list(msgspec.to_builtins(machine.examine(Namespaces(), Surroundings(), checks_of_runtimes())))
