"""Listeners at host ports are looked up in a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from linkspan.core.model import Port
from linkspan.endpoints.host_listeners import HostListeners
from linkspan.kernel.probe import port_owners

PORTS = [Port("", 8080, 80, "tcp"), Port("127.0.0.1", 53, 53, "udp")]


def test_a_look_does_not_wait_for_the_loop_s_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace has one of them for seconds, and a container with a published port would wait for its end."""
    asked: list[object] = []

    def holders(ports: list[port_owners.Asked], own: object) -> dict[port_owners.Asked, str]:
        asked.append((ports, own, threading.current_thread() is threading.main_thread()))
        return {ports[1]: "process 1 (named)"}

    monkeypatch.setattr(port_owners, "holders", holders)
    monkeypatch.setattr(port_owners, "first_free", lambda ports, _own: ports[0])

    async def look() -> None:
        over = threading.Event()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        trace = asyncio.create_task(asyncio.to_thread(over.wait, 10))
        listeners = HostListeners(lambda: {(b"own", 53)})
        assert await listeners.holders(PORTS) == {PORTS[1]: "process 1 (named)"}
        assert await listeners.first_free(PORTS) == PORTS[0]
        assert not trace.done()
        over.set()
        assert await trace
        listeners.close()

    asyncio.run(look())
    assert asked == [([("tcp", "", 8080), ("udp", "127.0.0.1", 53)], {(b"own", 53)}, False)]
