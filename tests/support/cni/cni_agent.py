"""An agent in memory for tests of the CNI handler: it gives addresses and keeps endpoints, and touches no kernel."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from msgspec.structs import replace

from linkspan.core.errors import Conflict, Exhausted, LinkspanError, NotFound
from linkspan.core.model import AttachRequest, Endpoint, Network

T = TypeVar("T")

DEMO = Network(
    name="demo",
    pools=("10.244.0.0/24", "fd00:244::/64"),
    subnet_len={"4": 24, "6": 64},
    backend="bridge",
    gateways=("10.244.0.1/24", "fd00:244::1/64"),
)


class FakeAgent:
    """Implements HostAgent and Chain. ``fails`` has the errors by method, ``differs`` what check finds."""

    def __init__(self, *networks: Network) -> None:
        self.networks = {network.name: network for network in networks or (DEMO,)}
        self.attached: dict[tuple[str, str], Endpoint] = {}
        self.requests: list[AttachRequest] = []
        self.checked: list[tuple[Endpoint, str, int]] = []
        self.followed: list[Endpoint] = []
        self.fails: dict[str, LinkspanError] = {}
        self.differs: list[str] = []
        self.left = 250
        self.servers: tuple[str, ...] = ()

    def _may_fail(self, method: str) -> None:
        if error := self.fails.get(method):
            raise error

    async def attach(self, request: AttachRequest, namespace_fd: int, namespace_path: str) -> Endpoint:
        """Attach with the next address of each pool."""
        self._may_fail("attach")
        if (request.id, request.ifname) in self.attached:
            raise Conflict(f"interface {request.ifname} of container {request.id} is attached already")
        if self.left <= 0:
            raise Exhausted(f"network {request.network} has no address left")
        network = self.network(request.network)
        number = 2 + len(self.attached)
        endpoint = Endpoint(
            id=request.id,
            ifname=request.ifname,
            name=request.name,
            network=request.network,
            addresses=tuple(gateway.replace("1/", f"{number}/") for gateway in network.gateways),
            gateways=network.gateways,
            mac=request.mac or "02:00:0a:f4:00:02",
            mtu=network.mtu,
            host_ifname="lsp0123456789ab",
            ports=request.ports,
            labels=request.labels,
            netns=os.fstat(namespace_fd).st_ino,
            netns_path=namespace_path,
            bandwidth=request.bandwidth,
        )
        self.requests.append(request)
        self.attached[endpoint.identity] = endpoint
        self.left -= 1
        return endpoint

    async def detach(self, id: str, ifname: str = "", network: str = "") -> int:
        """Detach what matches."""
        self._may_fail("detach")
        self._may_fail(f"detach {id}")
        found = [
            endpoint
            for endpoint in self.attached.values()
            if endpoint.id == id and ifname in ("", endpoint.ifname) and network in ("", endpoint.network)
        ]
        for endpoint in found:
            del self.attached[endpoint.identity]
        self.left += len(found)
        return len(found)

    def endpoints(self) -> Mapping[tuple[str, str], Endpoint]:
        """Return what is attached."""
        return self.attached

    def network(self, name: str) -> Network:
        """Return a network."""
        if name not in self.networks:
            raise NotFound(f"network {name} does not exist", f"linkspan network create {name}")
        return self.networks[name]

    async def with_news(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make the call."""
        return await call()

    async def recognise(self, container: str, ifname: str = "") -> None:
        """Nothing was lost."""

    def nameservers(self, endpoint: Endpoint) -> tuple[str, ...]:
        """Return those that the test has set."""
        return self.servers

    async def told(self, endpoint: Endpoint, namespace_fd: int, hardware: str, mtu: int) -> Endpoint:
        """No plugin changed anything."""
        return endpoint

    async def check(self, endpoint: Endpoint, namespace_fd: int, hardware: str, mtu: int) -> list[str]:
        """Return the differences that the test has set."""
        self._may_fail("check")
        os.fstat(namespace_fd)
        self.checked.append((endpoint, hardware, mtu))
        return self.differs

    def follow(self, endpoint: Endpoint, namespace_fd: int) -> None:
        """Note what is followed."""
        os.fstat(namespace_fd)
        self.followed.append(endpoint)

    def free(self, network: str) -> int:
        """Return how many addresses are left."""
        return self.left

    def relabel(self, identity: tuple[str, str], labels: dict[str, str]) -> None:
        """Make an endpoint one that came by another way."""
        self.attached[identity] = replace(self.attached[identity], labels=labels)
