"""The agent composes its parts: each gets what it needs by its constructor, and uses the machine in a turn.

``scripts/shape.py`` finds what is set from outside afterwards.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import linkspan
from linkspan.agent import agent
from linkspan.agent.agent import Agent


def _nodes(file: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))))


def test_no_callback_of_the_agent_stands_for_something_that_comes_later() -> None:
    """A lambda hides in which order the parts need each other."""
    join = next(n for n in _nodes(agent.__file__) if getattr(n, "name", "") == Agent._join.__name__)
    assert [ast.unparse(node) for node in ast.walk(join) if isinstance(node, ast.Lambda)] == []


ANY_THREAD = frozenset({"enter", "leave", "namespaces", "unwell", "fileno", "watch"})
"""What of the machine any thread may use at any time, as its docstrings say."""


def _chain(node: ast.expr, known: dict[str, list[str]]) -> list[str]:
    """Return the names of an attribute's chain; a local name stands for the chain that it was given."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value, known), node.attr]
    return known.get(node.id, [node.id]) if isinstance(node, ast.Name) else []


def _nodes_of(function: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs in the coroutine itself: functions inside are run by the worker."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from _nodes_of(node)


def _uses(text: str) -> list[str]:
    """Return the calls of the machine in coroutines, which the loop runs without a turn."""
    found = []
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.AsyncFunctionDef):
            continue
        known: dict[str, list[str]] = {}
        for node in _nodes_of(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                known[node.targets[0].id] = _chain(node.value, known)
            chain = _chain(node.func, known) if isinstance(node, ast.Call) else []
            if "machine" in chain and ANY_THREAD.isdisjoint(chain):
                found.append(".".join(chain))
    return found


def test_no_coroutine_uses_the_machine_without_a_turn() -> None:
    """The worker's thread may use it at that moment; a function is handed to ``Worker.run`` or ``run_brief``."""
    sources = Path(linkspan.__file__).parent
    found = {str(path): uses for path in sources.rglob("*.py") if (uses := _uses(path.read_text(encoding="utf-8")))}
    assert found == {}


@pytest.mark.parametrize(
    ("line", "uses"),
    [
        ("self._worker.machine.links.observe(0)", ["self._worker.machine.links.observe"]),
        ("r = worker.machine.reconciler; r.resync()", ["worker.machine.reconciler.resync"]),
        ("await worker.run(worker.machine.reconciler.resync)", []),
        ("worker.machine.enter(endpoint)", []),
        ("await worker.run(lambda: worker.machine.links.observe(0))", []),
    ],
)
def test_a_use_of_the_machine_is_seen(line: str, uses: list[str]) -> None:
    """By its chain of attributes, or by a local name; what is only passed on is none."""
    assert _uses(f"async def look(self, worker):\n    {line}\n") == uses
