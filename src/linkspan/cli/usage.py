"""Usage errors in linkspan's words: what was typed, why it is wrong, and what was probably meant.

The library that parses the command line has words of its own, which change with its version. All of them are
translated here, so that usage errors look like every other error: one line, exit code 2, and an object with
`-o json`.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from linkspan.core.errors import LinkspanError

# The library's base classes, which it does not export: all usage errors, and all errors that it shows itself.
USAGE_ERROR, SHOWN_ERROR = cast("tuple[type[Exception], type[Exception]]", typer.BadParameter.__mro__[1:3])

VERBS = {
    **dict.fromkeys(("rm", "remove", "del", "erase", "purge", "forget"), ("delete", "remove", "detach", "down")),
    **dict.fromkeys(("ls", "ps", "all"), ("list", "peers", "show")),
    **dict.fromkeys(("inspect", "describe", "get", "info", "cat"), ("show", "list")),
    **dict.fromkeys(("add", "new", "make", "start"), ("create", "attach", "reserve", "up")),
    **dict.fromkeys(("edit", "set", "modify", "change", "configure"), ("update", "set")),
    **dict.fromkeys(("connect", "join", "plug"), ("attach", "allow")),
    **dict.fromkeys(("disconnect", "leave", "unplug"), ("detach", "disallow")),
    **dict.fromkeys(("stop", "destroy"), ("down", "delete")),
    **dict.fromkeys(("fix", "repair", "heal", "restore"), ("mend",)),
    **dict.fromkeys(("cordon",), ("drain",)),
    **dict.fromkeys(("uncordon",), ("undrain",)),
    **dict.fromkeys(("sessions", "neighbors", "neighbours", "summary"), ("peers",)),
    **dict.fromkeys(("run", "enter", "ssh"), ("exec", "shell")),
    **dict.fromkeys(("verify", "audit"), ("check", "test")),
}
"""Other programs' verbs, and our equivalents, of which a group of commands may have one."""

PHRASES = {
    "linkspan": {
        **dict.fromkeys(("ps", "ls", "containers", "container", "endpoints"), "endpoint list"),
        **dict.fromkeys(("inspect", "describe"), "endpoint show"),
        **dict.fromkeys(("logs", "log", "journal", "history", "monitor"), "events"),
        **dict.fromkeys(("rm", "remove", "disconnect"), "detach"),
        **dict.fromkeys(("connect", "add", "run"), "attach"),
        **dict.fromkeys(("networks", "net"), "network list"),
        **dict.fromkeys(("hosts", "node", "nodes", "members"), "host list"),
        **dict.fromkeys(("addr", "addresses", "ipam"), "address list"),
        **dict.fromkeys(("ping", "traceroute", "tracepath", "path", "route"), "trace"),
        **dict.fromkeys(("check", "diagnose", "health", "test"), "doctor"),
        **dict.fromkeys(("info", "top", "state"), "status"),
        **dict.fromkeys(("start", "daemon", "serve", "init"), "agent"),
        **dict.fromkeys(("up", "cluster-up"), "lab up"),
        **dict.fromkeys(("create",), "network create"),
        **dict.fromkeys(("delete",), "network delete"),
        **dict.fromkeys(("drift",), "diff"),
        **dict.fromkeys(("ui", "gui", "dashboard", "browser", "map", "topology"), "web"),
        **dict.fromkeys(("tutorial", "lesson", "lessons", "teach"), "learn"),
    },
    "linkspan network": {"connect": "attach", "attach": "attach", "disconnect": "detach", "detach": "detach"},
    "linkspan endpoint": {
        **dict.fromkeys(("create", "add", "attach", "new"), "attach"),
        **dict.fromkeys(("delete", "rm", "remove", "detach"), "detach"),
    },
    "linkspan cluster": {"nodes": "cluster members", "status": "cluster show", "remove": "cluster forget",
                         "backup": "cluster snapshot"},
    "linkspan host": {"status": "host show", "drained": "host drain"},
}
"""Usual words for commands that have another name or group here: by the group, the word, and the command."""

OPTIONS = {
    **dict.fromkeys(("--subnet", "--cidr", "--ip-range", "--range", "--prefix"), ("--pool", "--add-pool", "--ip")),
    **dict.fromkeys(("--driver", "--type", "-d", "--to"), ("--backend",)),
    **dict.fromkeys(("--net", "-n"), ("--network", "--last", "--hosts")),
    **dict.fromkeys(("-p", "--ports", "--port"), ("--publish", "--port")),
    **dict.fromkeys(("--ip-address", "--address", "--ip6"), ("--ip",)),
    **dict.fromkeys(("--tcp", "--udp", "--sctp", "--dport"), ("--port",)),
    **dict.fromkeys(("--json", "--format", "--out"), ("--output",)),
    **dict.fromkeys(("--option", "-O"), ("--opt",)),
    **dict.fromkeys(("--interface", "--iface", "-i"), ("--ifname",)),
    **dict.fromkeys(("--tail", "--lines", "--limit"), ("--last",)),
    **dict.fromkeys(("--after", "--from"), ("--since",)),
    **dict.fromkeys(("--watch", "-w"), ("--follow",)),
    **dict.fromkeys(("-f", "-y", "--assume-yes"), ("--force", "--yes")),
    **dict.fromkeys(("--labels", "-l"), ("--label",)),
    **dict.fromkeys(("--name", "--node"), ("--host",)),
    **dict.fromkeys(("--nodes",), ("--hosts",)),
    **dict.fromkeys(("--cluster",), ("--lab", "--store")),
    **dict.fromkeys(("--verify", "--simulate", "--check"), ("--dry-run",)),
}
"""Other programs' options, and our equivalents, of which a command may have one."""

_PROTOCOLS = ("tcp", "udp", "sctp")


class UsageFault(LinkspanError):
    """The typed words are no command of linkspan: exit code 2."""

    code = "usage"


class Commands(TyperGroup):
    """A group of commands that suggests the command that was probably meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command. Raises UsageFault if there is none."""
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            path, word = ctx.command_path, args[0]
            raise UsageFault(f"there is no command `{path} {word}`", self._meant(path, word, args[1:]))
        return super().resolve_command(ctx, args)

    def _meant(self, path: str, word: str, rest: Sequence[str]) -> str:
        if word == "help":
            return f"write `{' '.join((path, *rest))} --help`"
        own = {name: command for name, command in self.commands.items() if not command.hidden}
        root = path.split()[0]
        if phrase := PHRASES.get(path, {}).get(word.lower()):
            return _question([f"{root} {phrase}"])
        verbs = [verb for verb in VERBS.get(word.lower(), ()) if verb in own]
        close = verbs[:1] or difflib.get_close_matches(word.lower(), own, n=2, cutoff=0.6)
        found = [f"{path} {name}" for name in close]
        if not found and path == root:  # a verb without a group: every group that has it
            groups = {name: group.commands for name, group in own.items() if isinstance(group, TyperGroup)}
            found = [f"{path} {name} {word}" for name, commands in groups.items() if word in commands]
        return _question(found) if found else f"`{path} --help` shows the commands"


def _question(candidates: Iterable[str]) -> str:
    return f"did you mean {' or '.join(f'`{one}`' for one in candidates)}?"


def fault(error: Any, words: Sequence[str]) -> UsageFault:
    """Return the library's usage ``error`` in our words; ``words`` are those of the command line."""
    context = error.ctx
    path = context.command_path if context is not None else "linkspan"
    help_ = f"`{path} --help` shows the options and arguments"
    kind = type(error).__name__
    param = getattr(error, "param", None)
    if kind == "NoSuchOption":
        return UsageFault(f"`{path}` has no option {error.option_name}", _option(error, words) or help_)
    if kind == "MissingParameter" and param is not None:
        return UsageFault(f"`{path}`: {_name(param)} is missing", f"write `{_usage(context)}`")
    if kind == "BadOptionUsage":
        return UsageFault(f"option {error.option_name} needs a value", "the command's --help shows its form")
    if error.message.startswith("Got unexpected extra argument"):
        extra = error.message.partition("(")[2].rpartition(")")[0].removeprefix("s) (")
        return UsageFault(f"`{path}`: {extra!r} is one argument too many", f"write `{_usage(context)}`")
    if isinstance(error, typer.BadParameter):
        hint = error.param_hint or (_name(param) if param is not None else "")
        name = hint if isinstance(hint, str) else " or ".join(hint)
        what = f"{name}: " if name else ""
        return UsageFault(f"`{path}`: {what}{_wrong(error)}", help_)
    return UsageFault(f"`{path}`: {error.message[:1].lower()}{error.message[1:].rstrip('.')}", help_)


def not_utf8(text: str, words: Sequence[str]) -> UsageFault | None:
    """Return the error if a word of the command line is why this text cannot be encoded, else None.

    Python keeps the bytes of arguments that are no UTF-8 as surrogates: files may have such names, nothing else.
    """
    wrong = [word for word in words if any("\udc80" <= one <= "\udcff" for one in word)]
    meant = [word for word in wrong if text in word or word in text] or wrong
    if not meant:
        return None
    return UsageFault(f"argument {meant[0]} is not UTF-8", "names, labels and ports are text in UTF-8")


def _option(error: Any, words: Sequence[str]) -> str:
    """Return a hint with the option that was probably meant, '' if there is none."""
    name = error.option_name
    own = [opt for one in error.ctx.command.params if not getattr(one, "hidden", False) for opt in one.opts]
    meant = [one for one in OPTIONS.get(name, ()) if one in own][:1]
    if meant == ["--port"] and name.lstrip("-") in _PROTOCOLS:
        return _question([f"--port {_value(name, words) or 'N'}/{name.lstrip('-')}"])
    if meant == ["--output"]:
        return _question(["--output json"])
    close = meant or difflib.get_close_matches(name, own, n=2, cutoff=0.65)
    return _question(close) if close else ""


def _value(option: str, words: Sequence[str]) -> str:
    """Return the number given with an option, '' if there is none."""
    for number, word in enumerate(words):
        name, sign, value = word.partition("=")
        if name == option:
            value = value if sign else next(iter(words[number + 1 :]), "")
            return value if value.isdigit() else ""
    return ""


_WORDS = {
    r"is not a valid int( range)?": "is not a whole number",
    r"is not a valid float( range)?": "is not a number",
    r"is not in the range (\S+)<=x<=(\S+)": r"is not from \1 to \2",
    r"is not in the range x>=(\S+)": r"is less than \1",
}
"""The ends of the library's own messages, as patterns, and ours."""


def _wrong(error: Any) -> str:
    """Return why a value is refused."""
    text = str(error.message).rstrip(".")
    unit = "; give seconds" if getattr(getattr(error, "param", None), "metavar", "") == "SECONDS" else ""
    replaced = (re.sub(f"{theirs}$", ours, text) for theirs, ours in _WORDS.items())
    return next((f"{one}{unit}" for one in replaced if one != text), text)


def _metavar(param: Any) -> str:
    return str(param.name).upper() if param.metavar is None else str(param.metavar)


def _name(param: Any) -> str:
    """Return an argument's name as help shows it, or an option's longest one."""
    return max(param.opts, key=len) if param.param_type_name == "option" else _metavar(param)


def _usage(context: Any) -> str:
    """Return the shortest correct command line."""
    return " ".join((context.command_path, *_pieces(context.command.params)))


def _pieces(params: Iterable[Any]) -> Iterator[str]:
    for param in params:
        if param.param_type_name == "argument":
            yield _shown(param)
        elif param.required:
            yield f"{_name(param)} {_metavar(param)}"


def _shown(param: Any) -> str:
    """Return an argument as every usage line shows it: NAME, or [NAME] if it is optional."""
    name = _metavar(param)
    name += "..." if param.nargs != 1 and not name.endswith("...") else ""
    return name if param.required else f"[{name}]"


def tidy(command: Any) -> None:
    """Make help show flags without a type and arguments by their names, for a command and all below it."""
    context = typer.Context(command, info_name=command.name, help_option_names=["-h", "--help"])
    for param in (*command.params, command.get_help_option(context)):
        if isinstance(param, TyperOption) and param.is_flag:
            param.metavar = ""
        elif isinstance(param, TyperArgument):
            _untyped(param)
    for below in getattr(command, "commands", {}).values():
        tidy(below)


def _untyped(argument: Any) -> None:
    argument.get_usage_pieces = lambda _context: [_shown(argument)]
    argument.type = copy.copy(argument.type)  # several arguments share it
    argument.type.get_metavar = lambda param, ctx: ""  # noqa: ARG005 - the library gives them by these names
