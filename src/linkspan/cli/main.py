"""The command line. Exit codes: 0 done, 1 failed, 2 bad usage, 3 looked, and something is not well."""

from __future__ import annotations

import itertools
import sys
from typing import Annotated

import typer
import typer.main
from typer.core import TyperOption

from linkspan.cli import (
    address,
    agent,
    bgp,
    cluster,
    controller,
    demo,
    endpoint,
    host,
    install,
    lab,
    looking,
    network,
    telling,
)
from linkspan.cli.output import as_json
from linkspan.errors import LinkspanError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One network for containers on Linux, that can always show why a packet goes where it goes.",
)
app.add_typer(network.app, name="network")
app.add_typer(endpoint.app, name="endpoint")
app.add_typer(address.app, name="address")
app.add_typer(address.app, name="ip", hidden=True)
app.add_typer(host.app, name="host")
app.add_typer(cluster.app, name="cluster")
app.add_typer(bgp.app, name="bgp")
app.add_typer(controller.app, name="controller")
app.add_typer(install.app, name="install")
app.add_typer(lab.app, name="lab")
for command in (
    agent.agent,
    endpoint.attach,
    endpoint.detach,
    telling.status,
    telling.events,
    telling.plan,
    telling.diff,
    telling.version,
    looking.trace,
    looking.doctor,
    install.uninstall,
    demo.demo,
):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        telling.version()
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version, and end.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command; an error is one line on stderr (with -o json also an object on stdout)."""
    command = typer.main.get_command(app)
    for option in command.params:
        if isinstance(option, TyperOption) and option.name in ("install_completion", "show_completion"):
            option.hidden = True  # used once in a life, and two fifths of the help otherwise
    try:
        command(prog_name="linkspan")
    except LinkspanError as error:
        if _wants_json(sys.argv[1:]):
            as_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        print(f"linkspan: {error.told}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)


def _wants_json(words: list[str]) -> bool:
    return any(w in ("-ojson", "--output=json") for w in words) or any(
        a in ("-o", "--output") and b == "json" for a, b in itertools.pairwise(words)
    )


if __name__ == "__main__":
    main()
