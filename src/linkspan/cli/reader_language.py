"""`linkspan learn` in the reader's language: its help, and the errors of all its parts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import typer

from linkspan.core.errors import LinkspanError
from linkspan.core.sentences import Sentences
from linkspan.core.translation import chosen
from linkspan.learn import progress
from linkspan.learn.language import Words


def spoken(typed: Sequence[str]) -> str:
    """Return the language for a command line's words; English if they name an unknown one, which is refused later."""
    wanted = [after for word, after in itertools.pairwise(typed) if word == "--lang"]
    wanted += [word.partition("=")[2] for word in typed if word.startswith("--lang=")]
    try:
        return chosen(wanted[-1] if wanted else "", progress.Progress(progress.folder()).language)
    except LinkspanError:
        return "en"


def translate(command: Any, typed: Sequence[str]) -> None:
    """Put the help of a command, and of all below it, into the reader's language."""
    if (language := spoken(typed)) != "en":
        _translate(command, Words(language))


def _translate(command: Any, words: Words) -> None:
    for one in (command, *command.params):
        if text := one.help:
            one.help = words(text)
    show = command.format_help

    def format_help(context: Any, formatter: Any) -> None:
        from typer import rich_utils  # loads rich, which takes long

        rich_utils.DEFAULT_STRING = f"[{words('default: {value}', value='{}')}]"
        rich_utils.REQUIRED_LONG_STRING = f"[{words('required')}]"
        show(context, formatter)

    def format_usage(context: Any, formatter: Any) -> None:
        pieces = " ".join(command.collect_usage_pieces(context))
        formatter.write_usage(context.command_path, pieces, prefix=f"{words('Usage')}: ")

    command.format_help, command.format_usage = format_help, format_usage
    for param in command.params:
        param.rich_help_panel = words("Options") if param.param_type_name == "option" else words("Arguments")
    help_option = command.get_help_option(typer.Context(command))
    help_option.help, help_option.rich_help_panel = words("Show this message and exit."), words("Options")
    for below in getattr(command, "commands", {}).values():
        below.rich_help_panel = words("Commands")
        _translate(below, words)


def told(error: LinkspanError, typed: Sequence[str]) -> str:
    """Return an error's message and hint in the reader's language, as far as its sentences are known."""
    return translated(error, spoken(typed))


def translated(error: LinkspanError, language: str) -> str:
    """Return an error's message and hint in a language, as far as its sentences are known."""
    if language == "en":
        return error.told
    say = Sentences(language)
    return "\uff1b".join(say(one) for one in (error.message, error.hint) if one)
