"""Tests that are coroutines, and the engines that all pass the same ones."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linkspan.store import etcd_gateway, etcd_lease, etcd_watch, memory, sqlite
from support.store.engines import Engine, EtcdEngine, MemoryEngine, SqliteEngine
from support.store.etcd_members import Members


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine on a loop of its own, and close there the stores that it opened."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    engines = [value for value in arguments.values() if isinstance(value, Engine)]

    async def steps() -> None:
        try:
            await pyfuncitem.obj(**arguments)
        finally:
            for engine in engines:
                await engine.close()

    asyncio.run(steps())
    return True


@pytest.fixture(scope="session")
def members() -> Iterator[Members]:
    """Start one etcd, in a network namespace of its own, for all tests of the contract."""
    with Members.started(1) as started:
        yield started


@pytest.fixture
def one() -> Iterator[Members]:
    """Start a member of the test's own, and be in its namespace."""
    with Members.started(1) as members, members.inside():
        yield members


@pytest.fixture
def three() -> Iterator[Members]:
    """Start three members, and be in their namespace."""
    with Members.started(3) as members, members.inside():
        yield members


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for what hangs, so that the tests do."""
    monkeypatch.setattr(etcd_gateway, "SECONDS", 1.0)
    monkeypatch.setattr(etcd_watch, "PROOF_SECONDS", 0.2)
    monkeypatch.setattr(etcd_watch, "QUIET_SECONDS", 0.3)


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let watches prove more often that they live, and standing records end sooner: so the test takes less time."""
    for module in (etcd_watch, memory, sqlite):
        monkeypatch.setattr(module, "PROOF_SECONDS", 0.1)
    for module in (etcd_lease, memory, sqlite):
        monkeypatch.setattr(module, "LIFE", 2.0)


@pytest.fixture(params=["memory", "sqlite", pytest.param("etcd", marks=pytest.mark.root)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Give each engine in turn, with an empty store."""
    if request.param == "memory":
        yield MemoryEngine()
    elif request.param == "sqlite":
        yield SqliteEngine(tmp_path / "store")
    else:
        members = request.getfixturevalue("members")
        with members.inside():
            yield EtcdEngine(members, request.node.name)
