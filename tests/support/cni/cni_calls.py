"""Calls of a runtime, as the shim would send them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from linkspan.runtimes.cni.cni_verbs import Cni
from support.cni.cni_agent import FakeAgent

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
PATH = "/run/netns/web"


def conf(version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    """Return a network configuration."""
    return {"cniVersion": version, "name": "demo", "type": "linkspan", **more}


class Runtime:
    """Calls the handler. This process's own namespace serves as the container's."""

    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent
        self._cni = Cni(agent, agent)

    def raw(self, body: bytes) -> tuple[int, bytes]:
        """Send a body as it is."""
        return asyncio.run(self._cni.handle(body, os.getpid()))

    def call(self, command: str, given: Any, **environment: str) -> Any:
        """Make a call that must succeed; return what is printed, parsed, or None."""
        status, answer = self.try_call(command, given, **environment)
        assert status == 200, answer
        return answer

    def fail(self, command: str, given: Any, **environment: str) -> dict[str, Any]:
        """Make a call that must fail; return the error object."""
        status, answer = self.try_call(command, given, **environment)
        assert status != 200, answer
        assert set(answer) == {"cniVersion", "code", "msg", "details"}
        return dict(answer)

    def try_call(self, command: str, given: Any, **environment: str) -> tuple[int, Any]:
        """Make a call; ``given`` is the configuration, or stdin's bytes."""
        with namespace() as fd:
            values = {
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": "web",
                "CNI_IFNAME": "eth0",
                "CNI_NETNS": PATH,
                "LINKSPAN_NETNS_FD": str(fd),
                "LINKSPAN_SELF_NETNS": "1",
                **environment,
            }
            block = b"".join(f"{key}={value}\0".encode() for key, value in values.items() if value)
            stdin = given if isinstance(given, bytes) else json.dumps(given).encode()
            status, answer = self.raw(block + b"\0" + stdin)
        return status, json.loads(answer) if answer else None


@contextmanager
def namespace() -> Iterator[int]:
    """Open this process's own network namespace."""
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
