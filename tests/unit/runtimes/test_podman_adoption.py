"""Podman as an adoption sees it: what a command that fails leaves, and how it is tried again."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from linkspan.core.errors import Unavailable
from linkspan.runtimes.adoption.bridge_engine import Move
from linkspan.runtimes.podman.podman_adoption import PodmanBridges
from linkspan.runtimes.podman.podman_adoption_plan import Described
from linkspan.runtimes.podman.podman_command import PodmanCommand

ID = "22a9c4ba2870" + "0" * 52
SHOP = msgspec.convert({"name": "shop", "driver": "bridge"}, Described)


class Podman(PodmanCommand):
    """Podman with one running container, whose note of the network stays when a connection fails."""

    def __init__(self, failures: int, *, connected_after: int = 99) -> None:
        self.failures = failures
        self.connected_after = connected_after
        self.calls: list[str] = []

    async def run(self, *words: str) -> bytes:
        """Carry out a command."""
        self.calls.append(words[1])
        match words[:2]:
            case ("network", "connect"):
                if self.calls.count("connect") <= self.failures:
                    raise Unavailable("the plugin refused")
            case ("network", "disconnect"):
                raise Unavailable("netavark: failed to delete container veth eth0: No such device")
            case ("container", "inspect"):
                on: dict[str, object] = {"shop": {}} if self.calls.count("connect") >= self.connected_after else {}
                state = {"Status": "running", "Pid": 7}
                seen = {"Id": ID, "Name": "web", "State": state, "NetworkSettings": {"Networks": on}}
                return json.dumps([seen]).encode()
        return b"{}"


def connect(podman: Podman) -> None:
    """Connect the container."""
    asyncio.run(PodmanBridges(podman).connect(SHOP, ID, Move("web", True, ("172.31.0.2",), aliases=(), mac="")))


@pytest.mark.parametrize(
    ("podman", "calls"),
    [
        (Podman(0), ["connect"]),
        (Podman(1), ["connect", "disconnect", "connect"]),
        (Podman(1, connected_after=1), ["connect"]),
    ],
)
def test_a_connection_that_an_interrupted_command_began_is_made(podman: Podman, calls: list[str]) -> None:
    """Its note is taken back, also where netavark finds nothing to delete; or it was made meanwhile."""
    connect(podman)
    assert [one for one in podman.calls if one.endswith("connect")] == calls


def test_a_connection_that_is_refused_again_leaves_no_note() -> None:
    """The error is the plugin's own."""
    podman = Podman(2)
    with pytest.raises(Unavailable, match="the plugin refused"):
        connect(podman)
    assert [one for one in podman.calls if one.endswith("connect")] == ["connect", "disconnect"] * 2
