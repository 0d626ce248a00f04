"""The agent is killed at every boundary between two steps of attach and detach: nothing leaks, nothing doubles."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from linkspan.core.errors import Unavailable
from support.agent import killed_agent
from support.agent.agent_host import PATIENCE, Host, World, first_ip, pings, run

POOLS = ("10.201.0.0/24", "fd00:201::/64")
PORT = {"host_ip": "", "host_port": 8080, "port": 80, "protocol": "udp"}
MODES = [pytest.param({}, id="bridged"), pytest.param({"mode": "routed"}, id="routed")]
MOST = 200
"""More boundaries than an operation has."""


class Killed:
    """A host whose agent can be killed in the middle, with a container that stays attached all the time."""

    def __init__(self, world: World, options: dict[str, str]) -> None:
        self.host = Host(world, cooldown=0)
        self._file = self.host.folder / "kill-at"
        self.start()
        self.host.network("demo", *POOLS, options=options)
        self.witness, self.container = world.namespace(), world.namespace()
        self.held = set(self.host.attach(self.witness)["addresses"])
        self.clean = self.seen()

    def start(self) -> None:
        """Start the agent, which behaves until ``within``."""
        self._file.unlink(missing_ok=True)
        program = functools.partial(killed_agent.main, str(self._file))
        self.host.start(sys.executable, killed_agent.__file__, str(self._file), program=program)

    def within(self, number: int, operation: Callable[[], object]) -> bool:
        """Return whether the agent was killed at this boundary of the operation; it runs again afterwards."""
        self._file.write_text(str(number))
        try:
            operation()
        except Unavailable:
            assert self.host.process is not None
            assert self.host.process.wait(PATIENCE) == -9
            self.start()
            return True
        self._file.unlink()
        return False

    def seen(self) -> dict[str, list[str]]:
        """Return the words of what is there, sorted: the kernel lists in the order of making."""
        commands = {
            "nft": ("nft", "list", "ruleset"),
            "addresses": ("ip", "-br", "addr"),
            "routes": ("ip", "route"),
            "routes6": ("ip", "-6", "route"),
        }
        shown = {name: run(*command, netns=self.host.netns) for name, command in commands.items()}
        shown["container"] = run("ip", "-br", "addr", netns=self.container)
        return {name: sorted(text.replace(",", "").split()) for name, text in shown.items()}

    def attach(self) -> dict[str, Any]:
        """Attach the container."""
        return self.host.attach(
            self.container, ports=[PORT], bandwidth={"ingressRate": 10**9, "egressRate": 10**9}
        )

    def sound(self) -> None:
        """Nothing leaks, differs or is held twice."""
        assert self.host.check() == {"ok": True, "leaked": [], "duplicate": [], "orphaned": []}
        assert self.host.differences() == []
        held = [a for e in self.host.client.call("GET", "/v1/endpoints") for a in e["addresses"]]
        assert len(held) == len(set(held))
        assert self.held <= set(held)

    def stands(self) -> dict[str, Any]:
        """Return the container's endpoint, an empty one where it is not attached."""
        endpoints = self.host.client.call("GET", "/v1/endpoints")
        return next((e for e in endpoints if e["id"] == self.container), {})

    def serves(self) -> None:
        """Expect that the container is attached correctly, with an address of its own."""
        endpoint = self.stands()
        assert endpoint
        assert not set(endpoint["addresses"]) & self.held
        assert pings(self.witness, first_ip(endpoint))
        assert self.host.differences() == []


@pytest.fixture(params=MODES)
def killed(world: World, request: pytest.FixtureRequest) -> Iterator[Killed]:
    """Return a host of each mode."""
    made = Killed(world, request.param)
    try:
        yield made
    finally:
        made.host.close()


def test_killed_in_an_attach(killed: Killed) -> None:
    """Wherever an attach is cut off, its container is off the network after a restart, and a second one succeeds.

    Only where all was done but the answer, the endpoint stands, whole.
    """
    undone = 0
    for number in itertools.count(1):
        assert number < MOST
        if not killed.within(number, killed.attach):
            break
        killed.sound()
        if not killed.stands():
            undone += 1
            assert killed.seen() == killed.clean, f"left over after boundary {number}"
            killed.attach()
        killed.serves()
        assert killed.host.detach(killed.container) == 1
    assert undone > 10, "the boundaries were not passed"
    killed.serves()


def test_killed_in_a_detach(killed: Killed) -> None:
    """Wherever a detach is cut off, the endpoint is complete or gone, and a second detach completes."""
    stood = gone = 0
    for number in itertools.count(1):
        assert number < MOST
        killed.attach()
        if not killed.within(number, lambda: killed.host.detach(killed.container)):
            break
        killed.sound()
        if killed.stands():
            stood += 1
            killed.serves()
            assert killed.host.detach(killed.container) == 1
        else:
            gone += 1
        assert killed.seen() == killed.clean, f"left over after boundary {number}"
    assert stood
    assert gone > 5, "the boundaries were not passed"
    killed.sound()
