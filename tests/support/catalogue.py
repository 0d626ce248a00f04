"""The strings that a part of the code translates, and its catalogues."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterable
from pathlib import Path

from linkspan.core.translation import LANGUAGES, parsed


def strings(paths: Iterable[Path], dynamic: str = "") -> set[str]:
    """Return the strings that the code passes to `words(...)`.

    Each is a constant, because nobody can translate another one. ``dynamic`` is the one expression that is allowed
    beside them.
    """
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2].lstrip("_") == "words":
                first = node.args[0]
                if ast.unparse(first) == dynamic:
                    continue
                assert isinstance(first, ast.Constant), f"{path}:{node.lineno}: not a string: nobody can translate it"
                found.add(str(first.value))
    return found


def check(locale: Path, wanted: set[str]) -> None:
    """Each language's catalogue translates exactly these strings, with the same values in braces."""
    assert {path.name for path in locale.iterdir()} == {f"{one}.po" for one in LANGUAGES if one != "en"}
    for path in locale.iterdir():
        known = parsed(path.read_text(encoding="utf-8"))
        assert known.keys() == wanted
        assert {text: _fields(text) for text in known} == {text: _fields(other) for text, other in known.items()}


def _fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}
