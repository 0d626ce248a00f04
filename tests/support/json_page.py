"""Fields that docs/json.md documents for each command."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "json.md"


def documented() -> dict[str, tuple[bool, set[str]]]:
    """Return, by command, whether it prints a list and the fields that the page names."""
    found: dict[str, tuple[bool, set[str]]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) != 3 or "`" not in cells[0]:
            continue
        commands, what, of = cells
        while of != (outer := re.sub(r"\([^()]*\)", "", of)):  # parentheses stand in parentheses
            of = outer
        of = of.partition(":")[0]
        fields = set(re.findall(r"`(\w+)`", of))
        if reference := re.search(r"as `([\w ]+)`", of):
            fields = (fields | found[reference[1]][1]) - {reference[1]}
        first, *others = re.findall(r"`([\w -]+)`", commands)
        group = first.partition(" ")[0]
        for command in (first, *(o if " " in o else f"{group} {o}" for o in others)):
            found[command] = (what == "a list", fields)
    return found
