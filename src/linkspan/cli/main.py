"""Command line. Exit codes: 0 done, 1 failed, 2 bad usage, 3 the command found a problem."""

from __future__ import annotations

import functools
import itertools
import sys
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperOption

from linkspan.api.client import Client
from linkspan.cli import (
    address,
    adopt,
    agent,
    bgp,
    cluster,
    controller,
    demo,
    doctor,
    endpoint,
    founding,
    host,
    install,
    lab,
    network,
    plan,
    policy,
    status,
    trace,
    upgrade,
    usage,
)
from linkspan.cli.output import as_json, say
from linkspan.core.errors import LinkspanError
from linkspan.core.escapes import escaped, shown

app = typer.Typer(
    cls=usage.Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One network for containers on Linux. It can always show why a packet goes where it goes.",
)
for name, group in (
    ("network", network.app),
    ("policy", policy.app),
    ("endpoint", endpoint.app),
    ("address", address.app),
    ("ip", address.app),
    ("host", host.app),
    ("cluster", cluster.app),
    ("bgp", bgp.app),
    ("controller", controller.app),
    ("install", install.app),
    ("adopt", adopt.app),
    ("lab", lab.app),
):
    app.add_typer(group, name=name, cls=usage.Commands, hidden=name == "ip")  # ip: the other name of address
cluster.app.command()(founding.init)
cluster.app.command()(founding.join)
cluster.app.command()(founding.members)
cluster.app.command()(founding.forget)
cluster.app.add_typer(founding.tokens, name="token", cls=usage.Commands)
for command in (
    agent.agent,
    endpoint.attach,
    endpoint.detach,
    status.status,
    status.events,
    plan.plan,
    plan.diff,
    status.version,
    trace.trace,
    doctor.doctor,
    upgrade.upgrade,
    install.uninstall,
    demo.demo,
):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        status.version()
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version, and exit.")
    ] = False,
) -> None:
    pass


@functools.cache
def commands() -> Any:
    """Return all commands as the library runs them: an object of a class that it does not export."""
    made = typer.main.get_command(app)
    for option in made.params:
        if isinstance(option, TyperOption) and option.name in ("install_completion", "show_completion"):
            option.hidden = True  # completion is used once, and would be two fifths of the help
    usage.tidy(made)
    return made


def main() -> None:
    """Run a command; print an error as one line on stderr (with -o json also as an object on stdout)."""
    words = sys.argv[1:]
    if not _wants_json(words):  # their own formatting escapes them
        Client.show_by(shown)
    try:
        sys.exit(commands()(prog_name="linkspan", standalone_mode=False))
    except LinkspanError as error:
        sys.exit(_failed(error, words))
    except usage.SHOWN_ERROR as error:
        if isinstance(error, usage.USAGE_ERROR) and type(error).__name__ == "NoArgsIsHelpError":
            print(error, end="")  # the message is the help, unless it is printed already
            sys.exit(2)
        wrong = isinstance(error, usage.USAGE_ERROR)
        sys.exit(_failed(usage.fault(error, words) if wrong else LinkspanError(str(error)), words))
    except typer.Abort:
        print("linkspan: nothing was done, because it was not confirmed", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)


def _failed(error: LinkspanError, words: list[str]) -> int:
    """Print an error, and return the exit code."""
    if _wants_json(words):
        as_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
    say(escaped(f"linkspan: {error.told}", keep="\n"), sys.stderr)
    return 2 if isinstance(error, usage.UsageFault) else 1


def _wants_json(words: list[str]) -> bool:
    own = words[: words.index("--")] if "--" in words else words  # the rest belongs to another program
    return any(w in ("-ojson", "-o=json", "--output=json") for w in own) or any(
        a in ("-o", "--output") and b == "json" for a, b in itertools.pairwise(own)
    )


if __name__ == "__main__":
    main()
