"""Output of commands: tables for people (plain if stdout is no terminal), JSON for scripts."""

from __future__ import annotations

import contextlib
import datetime
import enum
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, TextIO

import msgspec
import typer

from linkspan.cli import layout
from linkspan.core.config import SOCKET
from linkspan.core.escapes import escaped


class Format(enum.StrEnum):
    """The value of --output."""

    TABLE = "table"
    JSON = "json"


Output = Annotated[
    Format,
    typer.Option("--output", "-o", metavar="table|json", help="A table for people, or JSON for scripts."),
]
Socket = Annotated[
    str, typer.Option("--socket", metavar="PATH", envvar="LINKSPAN_SOCKET", help="The agent's unix socket.")
]
DEFAULT_SOCKET = SOCKET


def as_json(value: object) -> None:
    """Print a value as indented JSON."""
    print(_indented(msgspec.json.encode(value).decode()))


def as_json_list(parts: Iterable[str]) -> None:
    """Print lists, each of them JSON in one line, as one indented list, each as soon as it is there."""
    before = "["
    for part in parts:
        print(before + _indented(part)[1:-2], end="")
        before = ","
    print("[]" if before == "[" else "\n]")


def _indented(line: str) -> str:
    # Escaped before it is indented: until then a line's end in it would be one of a text.
    return msgspec.json.format(escaped(line), indent=2)


def width(stream: TextIO | None = None) -> int:
    """Return how many cells a terminal's line has (stdout's, or another stream's), 0 if it is no terminal."""
    return shutil.get_terminal_size().columns if (stream or sys.stdout).isatty() else 0


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print rows as a table that fits the terminal, else in plain columns; print ``empty`` if there are none.

    Very long words are shortened (`layout.shortened`).
    """
    cells = [[layout.shortened(str(cell)) for cell in row] for row in rows]
    if not cells:
        say(empty)
    elif room := width():
        header, *lines = layout.laid_out(columns, cells, room)
        bold = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        print(f"\033[1m{header}\033[0m" if bold else header)
        print("\n".join(lines))
    else:
        print("\n".join(layout.plain(columns, cells)))


def details(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one per line, in two columns; on a terminal values wrap between words."""
    shown = [(name, str(value)) for name, value in pairs if value not in ("", None)]
    longest = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        start = f"{name.ljust(longest)}  "
        lines = layout.wrapped(value, room, start, " " * len(start)) if (room := width()) else [f"{start}{value}"]
        print("\n".join(lines))


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a sentence; on a terminal it wraps between words."""
    room = width(stream)
    print(layout.filled(text, room) if room else text, file=stream)


def ago(at: float) -> str:
    """Return how long ago a moment (seconds since the epoch) was, in one unit."""
    seconds = max(0, int(time.time() - at))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def moment(text: str, option: str) -> float:
    """Return the time (seconds since the epoch) of an option: 90s, 10m, 2h, 3d ago, or a date and time.

    A time without a date is today's; without a zone it is this machine's.
    """
    if ago_ := re.fullmatch(r"(\d+) ?(s|m|min|h|d)(?: ago)?", text.strip()):
        return time.time() - int(ago_[1]) * _UNITS[ago_[2]]
    now = datetime.datetime.now().astimezone()
    try:
        if re.fullmatch(r"\d\d:\d\d(:\d\d)?", text.strip()):
            text = f"{now.date().isoformat()} {text.strip()}"
        found = datetime.datetime.fromisoformat(text.strip())
        return (found if found.tzinfo else found.astimezone()).timestamp()
    except (ValueError, OverflowError) as error:
        form = "write 10m, 2h, 3d, 20:15 or 2026-01-31 20:15"
        raise typer.BadParameter(f"{text!r} is no time; {form}", param_hint=option) from error


def joined(values: Iterable[Any]) -> str:
    """Return values joined by commas, "-" if there are none."""
    return ", ".join(str(v) for v in values) or "-"


def split(values: Sequence[str] | None) -> list[str]:
    """Return the values of a repeatable option that also takes commas."""
    return [part for value in values or () for part in value.split(",") if part]


def pairs(values: Sequence[str] | None, option: str, form: str = "KEY=VALUE") -> dict[str, str]:
    """Return KEY=VALUE options as a dictionary; a usage error if one has no ``=``."""
    found = {}
    for value in values or ():
        key, sign, word = value.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{value!r} is not {form}", param_hint=option)
        found[key] = word
    return found


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Report on stderr what is being done, and how long it took."""
    begun = time.monotonic()
    on_terminal = sys.stderr.isatty()
    if on_terminal:
        print(f"  ..  {what}", end="\r", file=sys.stderr, flush=True)
    try:
        yield
    except BaseException:
        print(f"  no  {what}", file=sys.stderr)
        raise
    print(f"  ok  {what} ({time.monotonic() - begun:.1f} s)", file=sys.stderr)
