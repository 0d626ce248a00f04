"""What commands print: tables for people (plain where stdout is no terminal), JSON for scripts."""

from __future__ import annotations

import contextlib
import enum
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import msgspec
import typer

from linkspan.config import SOCKET


class Format(enum.StrEnum):
    """The value of --output."""

    TABLE = "table"
    JSON = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="A table for people, or JSON for scripts.")]
Socket = Annotated[str, typer.Option("--socket", envvar="LINKSPAN_SOCKET", help="The agent's unix socket.")]
DEFAULT_SOCKET = SOCKET


def as_json(value: object) -> None:
    """Print a value as indented JSON."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print rows as a table: rich's on a terminal, else plain columns; ``empty`` is said where there is none."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        print(empty)
    elif sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table

        drawn = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
        for column in columns:
            drawn.add_column(column, overflow="fold")  # an address that does not fit is told to its end
        for row in cells:
            drawn.add_row(*row)
        Console(highlight=False).print(drawn)
    else:
        widths = [max(len(row[n]) for row in [list(columns), *cells]) for n in range(len(columns))]
        for row in [[c.upper() for c in columns], *cells]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def details(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one a line, in two columns."""
    shown = [(name, str(value)) for name, value in pairs if value not in ("", None)]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name.ljust(width)}  {value}")


def ago(at: float) -> str:
    """Return how long ago a moment (seconds since the epoch) was, in one unit."""
    seconds = max(0, int(time.time() - at))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def joined(values: Iterable[Any]) -> str:
    """Return values joined by commas, "-" where there is none."""
    return ", ".join(str(v) for v in values) or "-"


def split(values: Sequence[str] | None) -> list[str]:
    """Return the values of a repeatable option that also takes commas."""
    return [part for value in values or () for part in value.split(",") if part]


def pairs(values: Sequence[str] | None, option: str, form: str = "KEY=VALUE") -> dict[str, str]:
    """Return KEY=VALUE options as a dictionary; a usage error where one has no ``=``."""
    found = {}
    for value in values or ():
        key, sign, word = value.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{value!r} is not {form}", param_hint=option)
        found[key] = word
    return found


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Tell on stderr what is being done, and how long it took."""
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
