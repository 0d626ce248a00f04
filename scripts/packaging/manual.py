"""The man page and the shells' completion, from the command line's own help."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import typer
from sources import Missing, run
from typer.core import TyperCommand, TyperGroup, TyperOption

from linkspan.cli.main import app


def page(version: str) -> str:
    """Return linkspan(8), with a section for each command."""
    lines = [
        f'.TH LINKSPAN 8 "" "linkspan {version}" "System administration"',
        ".SH NAME",
        "linkspan \\- network for containers on one host or many",
        ".SH SYNOPSIS",
        ".B linkspan",
        "COMMAND [OPTIONS]",
    ]
    command = typer.main.get_command(app())
    assert isinstance(command, TyperGroup)
    lines += [".SH DESCRIPTION", *_text(command.help or ""), ".SH COMMANDS"]
    _commands(command, "linkspan", lines)
    return "\n".join(lines) + "\n"


def _commands(command: TyperCommand | TyperGroup, path: str, lines: list[str]) -> None:
    """Add a command, or all commands of a group."""
    if command.hidden:
        return
    if isinstance(command, TyperGroup):
        for name, one in sorted(command.commands.items()):
            assert isinstance(one, TyperCommand | TyperGroup)
            _commands(one, f"{path} {name}", lines)
        return
    context = typer.Context(command, info_name=path)
    lines += [f".SS {_escaped(' '.join([path, *command.collect_usage_pieces(context)]))}"]
    lines += _text(command.help or command.short_help or "")
    for parameter in command.get_params(context):
        if isinstance(parameter, TyperOption) and not parameter.hidden:
            names = ", ".join([*parameter.opts, *parameter.secondary_opts])
            lines += [".TP", f".B {_escaped(names)}", *_text(parameter.help or "")]


def _text(words: str) -> list[str]:
    """Return help as lines of a man page, in which no line begins with a request."""
    plain = re.sub(r"\[/?[a-z ]+\]", "", words).replace("\b", "")
    return [_escaped(line.strip()) or ".PP" for line in plain.strip().splitlines()]


def _escaped(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def completion(shell: str) -> str:
    """Return the script by which a shell completes commands. Raises Missing if linkspan gives none."""
    command = Path(sys.executable).with_name("linkspan")
    script = run(command, env=os.environ | {"_LINKSPAN_COMPLETE": f"source_{shell}"})
    if not script.strip():
        raise Missing(f"{command} gives no completion for {shell}")
    return script
