"""A namespace that is gone, and the next one with its inode: endpoints of both are never there together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from linkspan.core.model import Endpoint
from linkspan.endpoints import delivery
from linkspan.endpoints.registry import Identity, Registry

NUMBER, OLD, NEW, FD = 4026532000, 70, 71, 9


class Kept(Registry):
    """Endpoints that are there, and what was done to them; which pairs lead into the open namespace is given."""

    def __init__(self, *endpoints: Endpoint, pairs: tuple[str, ...] = ()) -> None:
        self.endpoints = {endpoint.identity: endpoint for endpoint in endpoints}
        self.pairs = pairs
        self.renewed: list[tuple[int, int]] = []
        self.worker: Any = self
        self.machine = self.links = self.namespaces = self

    def within(self, netns: int) -> list[Endpoint]:
        """Return those in a namespace."""
        return [endpoint for endpoint in self.endpoints.values() if endpoint.netns == netns]

    async def run_brief(self, function: Any, *args: Any) -> Any:
        """Run it here and now."""
        return function(*args)

    def leads_into(self, name: str, fd: int) -> bool:
        """Return whether a pair leads into the open namespace."""
        return fd == FD and name in self.pairs

    def renew(self, number: int, cookie: int) -> None:
        """Note whose inode it is now."""
        self.renewed.append((number, cookie))


@pytest.fixture(autouse=True)
def verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detach and alter without a kernel."""

    async def detached(kept: Kept, container: str, ifname: str) -> int:
        del kept.endpoints[container, ifname]
        return 1

    async def altered(kept: Kept, identity: Identity, change: Any) -> Endpoint:
        kept.endpoints[identity] = change(None, kept.endpoints[identity])
        return kept.endpoints[identity]

    monkeypatch.setattr(delivery, "detach", detached)
    monkeypatch.setattr(delivery, "alter", altered)


def endpoint(id_: str, cookie: int, number: int = NUMBER) -> Endpoint:
    """Return an endpoint in a namespace."""
    return Endpoint(
        id=id_, ifname="eth0", network="demo", netns=number, netns_cookie=cookie, host_ifname=f"lsp-{id_}"
    )


def left(kept: Kept, cookie: int = NEW, but: Identity | None = None) -> dict[str, int]:
    """Return who is left when a namespace is about to get an endpoint, each with its cookie."""
    asyncio.run(delivery.make_way(kept, NUMBER, cookie, FD, but=but))
    return {one.id: one.netns_cookie for one in kept.endpoints.values()}


def test_endpoints_of_the_namespace_that_is_gone_make_way() -> None:
    """Those of the same namespace and of any other inode stay."""
    kept = Kept(endpoint("dead", OLD), endpoint("mate", NEW), endpoint("other", OLD, NUMBER + 1))
    assert left(kept) == {"mate": NEW, "other": OLD}
    assert kept.renewed == [(NUMBER, NEW)]


def test_one_that_comes_again_is_not_detached_by_its_own_coming() -> None:
    """A runtime may take an endpoint to its restarted container without having left the old one."""
    kept = Kept(endpoint("dead", OLD), endpoint("again", OLD))
    assert left(kept, but=("again", "eth0")) == {"again": OLD}


def test_an_unknown_cookie_is_learnt_where_the_pair_leads_into_the_namespace() -> None:
    """If it leads elsewhere, the endpoint was another container's."""
    kept = Kept(endpoint("mate", 0), endpoint("dead", 0), pairs=("lsp-mate",))
    assert left(kept) == {"mate": NEW}


def test_a_kernel_without_cookies_tells_no_namespaces_apart() -> None:
    """Nothing is known to be gone there."""
    kept = Kept(endpoint("one", 0))
    assert left(kept, cookie=0) == {"one": 0}
