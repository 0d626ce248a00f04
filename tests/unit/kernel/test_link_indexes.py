"""Indexes of links: those of a container are asked once for a batch, and never longer."""

from __future__ import annotations

from typing import cast

import pytest

from linkspan.core.states.host import HOST
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.netlink import GETLINK, Message
from linkspan.kernel.io.sockets import Sockets
from support.links import message

CONTAINER = 4026532000


class Kernel:
    """One link, whose index tests change, and how often it was asked for."""

    def __init__(self) -> None:
        self.index = 7
        self.asked = 0

    def get(self, request: Message) -> bytes:
        """Return the link."""
        assert request.type == GETLINK
        self.asked += 1
        return message(self.index, "eth0")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Return the kernel behind every socket."""
    found = Kernel()
    monkeypatch.setattr(Sockets, "at", lambda _self, _netns: found)
    return found


def test_a_container_s_link_is_asked_for_once_in_a_batch(kernel: Kernel) -> None:
    """Its interface, its addresses and its routes need the index."""
    sockets = Sockets(cast("Namespaces", None))
    assert sockets.link(CONTAINER, "eth0").number == 7
    assert [sockets.index(CONTAINER, "eth0"), sockets.index(CONTAINER, "eth0")] == [7, 7]
    assert kernel.asked == 1


def test_the_next_batch_asks_again(kernel: Kernel) -> None:
    """Another link may have the name by then; and so does whoever makes or removes links within a batch."""
    sockets = Sockets(cast("Namespaces", None))
    for number, over in enumerate((sockets.release, sockets.forget_indexes), 8):
        sockets.index(CONTAINER, "eth0")
        kernel.index = number
        over()
        assert sockets.index(CONTAINER, "eth0") == number


def test_the_host_s_links_are_always_asked_for(kernel: Kernel) -> None:
    """Its socket is open for as long as the agent runs."""
    sockets = Sockets(cast("Namespaces", None))
    sockets.index(HOST, "eth0")
    kernel.index = 8
    assert sockets.index(HOST, "eth0") == 8
