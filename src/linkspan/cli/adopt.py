"""`linkspan adopt`: take over a runtime's existing network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Annotated

import typer

from linkspan.api.client import Client
from linkspan.cli.address import NOT_WELL
from linkspan.cli.install import require_root
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, as_json, say
from linkspan.core import config
from linkspan.core.errors import Invalid, Unavailable
from linkspan.runtimes import runtimes
from linkspan.runtimes.adoption.outcome import Left, Outcome
from linkspan.runtimes.base import BaseRuntime

app = typer.Typer(no_args_is_help=True, help="Take over an existing network of a runtime, with its containers.")


def _one(runtime: BaseRuntime) -> Callable[..., None]:
    """Return the command that takes over a network of one runtime."""

    def adopt(
        network: Annotated[str, typer.Argument(metavar="NETWORK", help="The network's name in the runtime.")],
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Only show what would be done, and what is in the way.")
        ] = False,
        undo: Annotated[bool, typer.Option("--undo", help="Give the network back as it was.")] = False,
        confirm: Annotated[
            bool, typer.Option("--confirm", help="Keep it: forget how it was before the adoption.")
        ] = False,
        slow: Annotated[
            bool, typer.Option("--slow", help="Also if its containers will be without it for longer than a second.")
        ] = False,
        config_file: Annotated[
            str, typer.Option("--config", metavar="FILE", help="The agent's config file.")
        ] = "",
        output: Output = Format.TABLE,
        socket: Socket = DEFAULT_SOCKET,
    ) -> None:
        require_root()
        if dry_run + undo + confirm > 1:
            raise Invalid("--dry-run, --undo and --confirm exclude each other", "give one of them")
        client = Client(socket)
        state_dir = ""
        with contextlib.suppress(Unavailable):  # without an agent, by the settings: --undo may need none
            state_dir = client.call("GET", "/v1/status")["agent"]["state_dir"]
        adopter = runtime.adopter(config.load(config_file, {"state_dir": state_dir}), client.call)
        if dry_run:
            outcome = adopter.preview(network)
        elif undo:
            outcome = adopter.undo(network)
        elif confirm:
            outcome = adopter.confirm(network)
        else:
            outcome = adopter.adopt(network, slow=slow)
        _tell(outcome, output, "would be done: " if dry_run else "")
        if outcome.left:
            raise typer.Exit(NOT_WELL)

    return adopt


for _runtime in runtimes().values():
    if _runtime.adopts:
        app.command(_runtime.name, help=_runtime.adopts)(_one(_runtime))


def _tell(outcome: Outcome, output: Format, prefix: str) -> None:
    if output is Format.JSON:
        as_json(outcome)
        return
    for one in outcome.done:
        gap = f", {one.seconds:.2f} s without the network" if one.seconds else ""
        say(f"{prefix}{one.object}: {one.what}{gap}")
    for word, some in (("left", outcome.left), ("note", outcome.notes)):
        for left in some:
            say(f"{word}: {_sentence(left)}")


def _sentence(left: Left) -> str:
    return f"{left.object}: {left.why}" + (f"; {left.fix}" if left.fix else "")
