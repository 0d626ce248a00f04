"""What ends during an attach, its namespace or this host's right to give out addresses: the error says so."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from linkspan.core.desired import Source
from linkspan.core.errors import LinkspanError, NotFound, Unavailable
from linkspan.core.model import AttachRequest, Endpoint
from linkspan.core.states.host import HOST, Key, LinkSysctl, State, Veth
from linkspan.endpoints.attach import attach
from linkspan.kernel.drivers import routes
from linkspan.kernel.io.namespaces import Namespaces
from support.records import replicas
from support.records.one_host import network
from support.records.registry_stage import NotedMachine, NotedReconciler, RegistryStage

DEMO = network("demo", "10.1.0.0/24", routed=True)
COOKIE = 7


class Spaces(Namespaces):
    """Namespaces that are open, and have one cookie."""

    @contextlib.contextmanager
    def holding(self, fd: int, cookie: int = 0) -> Iterator[int]:
        """Hold nothing."""
        yield fd

    def cookie(self, fd: int) -> int:
        """Return the cookie of any."""
        return COOKIE


class Refusing(NotedReconciler):
    """A reconciler whose kernel has no setting of a link any more."""

    def changes(
        self, sources: Mapping[Source, Iterable[State]], there: tuple[type[State], ...] = ()
    ) -> dict[Key, LinkspanError]:
        """Refuse the settings."""
        every = {source: list(states) for source, states in sources.items()}
        super().changes(every, there)
        settings = [state for states in every.values() for state in states if isinstance(state, LinkSysctl)]
        return {one.key: NotFound(f"read sysctl {one.path}: the setting does not exist") for one in settings}


class Ending(NotedMachine):
    """A machine on which an attach finds no setting of its link; the link and the namespace may be gone."""

    def __init__(self, *, linked: bool, lives: bool) -> None:
        super().__init__(Refusing())
        self.namespaces, self.linked, self.lives = Spaces(), linked, lives
        self.sockets: Any = self

    def names(self, netns: int) -> dict[int, str]:
        """Return the host's links by index."""
        assert netns == HOST
        pairs = [one for states in self.noted.desired.sources().values() for one in states.values()]
        return {number: one.name for number, one in enumerate(pairs) if self.linked and isinstance(one, Veth)}

    def alive(self, endpoint: Endpoint) -> bool:
        """Return whether the namespace is there."""
        return self.lives


@pytest.mark.parametrize(
    ("linked", "lives", "why"),
    [
        (False, False, "attach c1 to demo: the container's network namespace [0-9]+ is gone"),
        (False, True, "the setting does not exist"),
        (True, False, "the setting does not exist"),
    ],
)
def test_a_namespace_that_ends_during_its_attach_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool, lives: bool, why: str
) -> None:
    """Only if the pair is gone as well; any other setting that is missing is reported by itself."""
    monkeypatch.setattr(routes, "default_metrics", lambda _sockets, _netns: [])

    async def run() -> None:
        machine = Ending(linked=linked, lives=lives)
        stage, fd = RegistryStage(tmp_path, machine), os.open(tmp_path, os.O_RDONLY)
        await stage.start(DEMO)
        free = stage.member.blocks.free("demo")
        with pytest.raises(LinkspanError, match=why):
            await attach(stage.registry, AttachRequest(id="c1", network="demo", ifname="eth0"), fd, "")
        assert not stage.endpoints
        assert stage.member.blocks.free("demo") == free
        os.close(fd)
        await stage.stop()

    asyncio.run(run())


class Stalling(NotedReconciler):
    """A reconciler that takes so long that this host's silence lasts too long meanwhile."""

    member: replicas.Member

    def changes(
        self, sources: Mapping[Source, Iterable[State]], there: tuple[type[State], ...] = ()
    ) -> dict[Key, LinkspanError]:
        """Make the changes, and be late."""
        self.member.stalled = "others may have reclaimed its addresses"
        return super().changes(sources, there)


def test_an_attach_that_stands_still_for_too_long_fails_and_frees_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other hosts may have reclaimed the block and given out the same address meanwhile."""
    monkeypatch.setattr(routes, "default_metrics", lambda _sockets, _netns: [])

    async def run() -> None:
        kernel = Stalling()
        machine = NotedMachine(kernel)
        other: Any = Ending(linked=True, lives=True)
        machine.namespaces, machine.sockets = other.namespaces, other
        stage, fd = RegistryStage(tmp_path, machine), os.open(tmp_path, os.O_RDONLY)
        kernel.member = stage.member
        net = replicas.network()
        await stage.start(net)
        await stage.member.leases.claim(net, {})
        stage.member.blocks.refresh()
        free = stage.member.blocks.free("demo")
        with pytest.raises(Unavailable, match="h1 gives no address now: others may have reclaimed its addresses"):
            await attach(stage.registry, AttachRequest(id="c1", network="demo", ifname="eth0"), fd, "")
        assert not stage.endpoints
        assert not stage.journal.rows()
        assert stage.member.blocks.free("demo") == free
        os.close(fd)
        await stage.stop()

    asyncio.run(run())
