"""Command line. Exit codes: 0 done, 1 failed, 2 bad usage, 3 the command found a problem."""

from __future__ import annotations

import functools
import gc
import importlib
import itertools
import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperOption

from linkspan.api.client import Client
from linkspan.cli import usage
from linkspan.cli.output import as_json, say
from linkspan.core.errors import Conflict, LinkspanError
from linkspan.core.escapes import escaped, shown
from linkspan.learn import INSIDE

GROUPS = {
    **dict.fromkeys(("network", "policy", "endpoint", "address"), ""),
    "ip": "address",  # its other name
    **dict.fromkeys(("host", "cluster", "bgp", "controller", "install", "adopt", "lab", "learn"), ""),
}
"""Groups of commands, in the order of the help, each with its module if that has another name."""
COMMANDS = {
    "agent": "",
    **dict.fromkeys(("attach", "detach"), "endpoint"),
    **dict.fromkeys(("status", "events"), "status"),
    "drops": "",
    **dict.fromkeys(("plan", "diff"), "plan"),
    "version": "status",
    **dict.fromkeys(("trace", "web", "doctor", "upgrade"), ""),
    "uninstall": "install",
    "demo": "",
}
"""Commands without a group, as above: each is a function with this name."""
IN_A_SANDBOX = ("learn", "version")
"""Commands that run in a lesson's sandbox. Others compare or change the machine's files: its state, its services."""


def _module(name: str, module: str) -> Any:
    return importlib.import_module(f"linkspan.cli.{module or name}")


def _version(wanted: bool) -> None:
    if wanted:
        _module("version", COMMANDS["version"]).version()
        raise typer.Exit


def _options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback shows it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version, and exit.")
    ] = False,
) -> None:
    if os.environ.get(INSIDE) and context.invoked_subcommand not in IN_A_SANDBOX:
        what = (
            f"`linkspan {context.invoked_subcommand}` does not run in a lesson's sandbox, "
            "which has a network of its own, but the machine's files"
        )
        raise Conflict(what, "type it in another window")


def app(names: Iterable[str] = (*GROUPS, *COMMANDS)) -> typer.Typer:
    """Return the command line with these groups and commands, all by default.

    Only their modules are imported: whoever types one command does not wait for the others.
    """
    made = typer.Typer(
        cls=usage.Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="One network for containers on Linux. It can always show why a packet goes where it goes.",
    )
    made.callback()(_options)
    for name in names:
        if name in GROUPS:
            group = _module(name, GROUPS[name]).app
            made.add_typer(group, name=name, cls=usage.Commands, hidden=name == "ip")
        else:
            made.command()(getattr(_module(name, COMMANDS[name]), name))
    return made


@functools.cache
def commands(*names: str) -> Any:
    """Return these commands, or all, as the library runs them: an object of a class that it does not export."""
    made = typer.main.get_command(app(names) if names else app())
    for option in made.params:
        if isinstance(option, TyperOption) and option.name in ("install_completion", "show_completion"):
            option.hidden = True  # completion is used once, and would be two fifths of the help
    usage.tidy(made)
    return made


@functools.cache
def _warn(text: str) -> None:
    """Print an agent's warning, once however many answers have it."""
    say(f"warning: {shown(text)}", sys.stderr)


def main() -> None:
    """Run a command; print an error as one line on stderr (with -o json also as an object on stdout)."""
    gc.freeze()  # what was imported is no garbage: to look for some in it takes a tenth of a short command's time
    words = sys.argv[1:]
    Client.warn_by(_warn)
    if not _wants_json(words):  # their own formatting escapes them
        Client.show_by(shown)
    try:
        typed = [word for word in words[:1] if word in GROUPS or word in COMMANDS]
        made = commands(*typed)
        if typed == ["learn"]:
            _module("reader_language", "").translate(made.commands["learn"], words)
        sys.exit(made(prog_name="linkspan", standalone_mode=False))
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
    except UnicodeEncodeError as error:
        if (unreadable := usage.not_utf8(error.object, words)) is None:
            raise
        sys.exit(_failed(unreadable, words))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)


def _failed(error: LinkspanError, words: list[str]) -> int:
    """Print an error, and return the exit code."""
    if _wants_json(words):
        said = {"code": error.code, "message": error.message, "hint": error.hint}
        as_json({"error": {key: text.encode(errors="backslashreplace").decode() for key, text in said.items()}})
    learns = words[:1] == ["learn"] or bool(os.environ.get(INSIDE))
    told = _module("reader_language", "").told(error, words) if learns else error.told
    say(escaped(f"linkspan: {told}", keep="\n"), sys.stderr)
    return 2 if isinstance(error, usage.UsageFault) else 1


def _wants_json(words: list[str]) -> bool:
    own = words[: words.index("--")] if "--" in words else words  # the rest belongs to another program
    return any(w in ("-ojson", "-o=json", "--output=json") for w in own) or any(
        a in ("-o", "--output") and b == "json" for a, b in itertools.pairwise(own)
    )


if __name__ == "__main__":
    main()
