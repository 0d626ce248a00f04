"""Runtime calls: what the services of runtimes use of this host's agent, as they expect it (``HostAgent``)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from linkspan.agent.news import News
from linkspan.cluster.address_usage import AddressUsage
from linkspan.core.model import AttachRequest, Endpoint, Network
from linkspan.dns.service import NameService
from linkspan.endpoints import attach, check, detach, rename
from linkspan.endpoints.registry import Identity, Registry

T = TypeVar("T")


class RuntimeCalls:
    """Implements ``HostAgent`` of ``runtimes/base.py``, which says what the methods do."""

    def __init__(self, registry: Registry, blocks: AddressUsage, name_service: NameService, news: News) -> None:
        self._registry = registry
        self._news = news
        self._blocks = blocks
        self._name_service = name_service

    async def attach(self, request: AttachRequest, namespace_fd: int, namespace_path: str) -> Endpoint:
        """Attach a container's namespace."""
        return await attach.attach(self._registry, request, namespace_fd, namespace_path)

    async def detach(self, id: str, ifname: str = "", network: str = "") -> int:
        """Detach a container's interfaces; return how many there were."""
        return await detach.detach(self._registry, id, ifname, network)

    async def recognise(self, container: str, ifname: str = "") -> None:
        """Identify a container whose id the journal lost."""
        await rename.recognise(self._registry, container, ifname)

    async def check(self, endpoint: Endpoint, namespace_fd: int, hardware: str, mtu: int) -> list[str]:
        """Return the differences between an endpoint and what its runtime knows of it."""
        return await check.check(self._registry, endpoint, namespace_fd, hardware, mtu)

    def endpoints(self) -> Mapping[Identity, Endpoint]:
        """Return this host's endpoints by (container id, interface)."""
        return self._registry.endpoints

    def network(self, name: str) -> Network:
        """Return a network. Raises NotFound."""
        return self._registry.networks.get(name)

    async def with_news(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call, and once more if it misses a record that another host has just written."""
        return await self._news.known(call)

    def nameservers(self, endpoint: Endpoint) -> tuple[str, ...]:
        """Return the addresses of the DNS server of the container's network."""
        return self._name_service.nameservers(endpoint)

    def free(self, network: str) -> int:
        """Return how many addresses a network has left."""
        return self._blocks.free(network)
