"""A host of the test's own: a network namespace with a real agent in it, and containers beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support.agent.agent_host import Host, World


@pytest.fixture
def world() -> Iterator[World]:
    """Namespaces that are removed after the test, with the processes in them."""
    made = World()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def host(world: World) -> Iterator[Host]:
    """Return a host with a running agent."""
    running = Host(world)
    running.start()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def container(world: World) -> Callable[[], str]:
    """Return a function that makes one more container's namespace and returns its name."""
    return world.namespace
