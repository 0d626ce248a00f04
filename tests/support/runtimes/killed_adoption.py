"""Adoptions whose process is killed at one of its changes, and the same command after that: for each engine."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from linkspan.api.client import Client
from linkspan.runtimes.adoption.bridge_adopter import BridgeAdopter
from linkspan.runtimes.adoption.bridge_engine import BridgeEngine
from support.runtimes.virtual_host import Engine, VirtualHost, reaches

Before = Callable[[str], None]
"""Called before each change of the engine or the agent, with what the change is."""


class Killed(BaseException):
    """The end of the process, as far as the adoption can see: nothing of it runs any more."""


class Adopting(Engine, Protocol):
    """An engine with a bridge network `shop`, which adopters in this process may move."""

    host: VirtualHost

    def address(self, name: str, network: str = ...) -> str:
        """Return a container's address as the engine knows it."""


class KilledAdoption:
    """The network `shop` of an engine with containers `web` and `db`, moved by processes that are killed."""

    def __init__(
        self,
        engine: Adopting,
        bridges: Callable[[Before], BridgeEngine[Any, Any]],
        driver: Callable[[], str],
        addresses: dict[str, str],
    ) -> None:
        """Take what makes the engine's part of an adopter, and tells the network's driver ("" if it is gone)."""
        self._engine = engine
        self._bridges = bridges
        self._driver = driver
        self._addresses = addresses

    def adopter(self, before: Before = lambda _change: None) -> BridgeAdopter[Any, Any]:
        """Return an adopter in this process."""
        agent = Client(str(self._engine.host.socket))

        def ask(method: str, url: str, body: object = None) -> Any:
            if method != "GET":
                before(f"{method} {url}")
            return agent.call(method, url, body)

        return BridgeAdopter(self._bridges(before), self._engine.host.folder / "state", ask)

    def is_continued(self) -> int:
        """Kill an adoption and its undo before their first change, before their second, and so on.

        The same command finishes each of them, and every container has its address then. Returns the number of changes
        that both have.
        """
        for allowed in itertools.count():
            killed = [self._finished_after(allowed, backwards=backwards) for backwards in (False, True)]
            if not any(killed):
                return allowed
            assert all(killed), f"only one of adopt and undo has {allowed} changes"
        raise AssertionError

    def _finished_after(self, allowed: int, *, backwards: bool) -> bool:
        """Kill an adoption (or its undo) after so many changes, and finish it; return whether it had more."""
        start, end = ("linkspan", "bridge") if backwards else ("bridge", "linkspan")
        assert self._driver() == start
        changes = 0

        def before(_change: str) -> None:
            nonlocal changes
            changes += 1
            if changes > allowed:
                raise Killed

        with contextlib.suppress(Killed):
            self._moved(self.adopter(before), backwards=backwards)
        killed = changes > allowed
        if killed:
            self._moved(self.adopter(), backwards=backwards)
        assert self._driver() == end
        assert {name: self._engine.address(name, "shop") for name in self._addresses} == self._addresses
        assert reaches(self._engine, "db", self._addresses["web"])
        return killed

    def _moved(self, adopter: BridgeAdopter[Any, Any], *, backwards: bool) -> None:
        outcome = adopter.undo("shop") if backwards else adopter.adopt("shop", slow=False)
        assert outcome.left == ()

    def is_killed_in_the_middle(self) -> None:
        """Kill an adoption before linkspan's network is made: the engine's is gone already."""

        def before(change: str) -> None:
            if change == "POST /v1/networks":
                raise Killed

        with pytest.raises(Killed):
            self.adopter(before).adopt("shop", slow=False)
        assert self._driver() == ""
