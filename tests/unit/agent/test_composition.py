"""The agent composes its parts: each gets what it needs by its constructor, and uses the machine in a turn.

``scripts/shape.py`` finds what is set from outside afterwards.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import linkspan
from linkspan.agent import agent
from linkspan.agent.agent import Agent
from linkspan.core.config import Config
from linkspan.core.driver_contract import Support
from linkspan.core.model import Host
from linkspan.endpoints.journal import Journal
from linkspan.kernel.drivers import wireguard
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.runtimes import runtimes
from linkspan.store.memory import Memory, MemoryStore
from support.memory_machine import MemoryMachine, worker_of


def _nodes(file: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))))


def test_no_callback_of_the_agent_stands_for_something_that_comes_later() -> None:
    """A lambda hides in which order the parts need each other."""
    makers = {Agent._join.__name__, *(name for name in vars(Agent) if name.startswith("_make_"))}
    found = [node for node in _nodes(agent.__file__) if getattr(node, "name", "") in makers]
    assert len(found) == len(makers) > 1
    lambdas = [node for one in found for node in ast.walk(one) if isinstance(node, ast.Lambda)]
    assert [ast.unparse(node) for node in lambdas] == []


class Unlooked(MemoryMachine):
    """A machine whose parts are passed on, and not used yet."""

    def __init__(self) -> None:
        super().__init__()
        self.namespaces = Namespaces()
        self.sockets = Sockets(self.namespaces)
        self.wireguard = wireguard.WireguardDriver(self.sockets, Path("keys"), lambda: Support("kernel"))
        self.ike = Path("charon.vici")


def test_each_part_finds_what_it_needs_when_it_is_made(tmp_path: Path) -> None:
    """Without a kernel, and with the store in memory: the registry is the one of all who change endpoints."""

    async def run() -> None:
        machine, one = Unlooked(), Agent(Config(state_dir=str(tmp_path)))
        one.worker, one.journal = worker_of(machine), Journal(tmp_path / "journal.db", cooldown=0)
        async with contextlib.AsyncExitStack() as parts:
            parts.callback(machine.namespaces.close)
            parts.callback(one.journal.close)
            await one._join(Host(id="h1", name="here"), MemoryStore(Memory()), True, parts)
            assert (one.hosts.here.id, one.registry.host) == ("h1", "here")
            assert set(one.services) == set(runtimes())

    asyncio.run(run())


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
