"""The agent composes its parts: each gets what it needs by its constructor, and nothing afterwards."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from linkspan.agent import agent, healer
from linkspan.agent.agent import Agent

MODULES = pytest.mark.parametrize("file", [agent.__file__, healer.__file__], ids=["agent", "healer"])


def _nodes(file: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))))


@MODULES
def test_no_attribute_of_a_part_is_set_from_outside(file: str) -> None:
    """A part that is not whole after its constructor works or not by the order in which others are made."""
    targets = [t for node in _nodes(file) if isinstance(node, ast.Assign) for t in node.targets]
    single = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
    found = [ast.unparse(e) for e in single if isinstance(e, ast.Attribute) and not isinstance(e.value, ast.Name)]
    assert found == []


def test_no_callback_of_the_agent_stands_for_something_that_comes_later() -> None:
    """A lambda hides in which order the parts need each other."""
    join = next(n for n in _nodes(agent.__file__) if getattr(n, "name", "") == Agent._join.__name__)
    assert [ast.unparse(node) for node in ast.walk(join) if isinstance(node, ast.Lambda)] == []
