"""The other hosts' names: of endpoints that are published, on hosts that live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from linkspan.core.model import Endpoint
from linkspan.dns import remote_names
from linkspan.dns.remote_names import Elsewhere
from linkspan.store.memory import Memory
from support.records.replicas import Member

KEY = "endpoints/h2/c1/eth0"
MADE = Endpoint(id="c1", ifname="eth0", network="demo", host="h2", name="web", addresses=("10.244.1.2/32",))


class Hearer:
    """Host h1, which hears of h2."""

    def __init__(self, folder: Path) -> None:
        self.member = Member(Memory(), folder, "h1")
        self.others = Elsewhere(self.member.replica, "h1")
        self.member.told = self.others.changed

    async def tell(self, value: bytes | Endpoint = MADE) -> None:
        """Have h2 say that it lives, and publish."""
        await self.member.replica.write({"alive/h2": b"h2", KEY: value})

    async def beat(self) -> None:
        """Have h2 say once more that it lives."""
        await self.member.replica.write({"alive/h2": b"h2"})

    def names(self) -> list[str]:
        """Return the first names of what is known."""
        self.others.look()
        return [one.names[0] for one in self.others.named.get("demo", ())]


def heard(folder: Path, work: Callable[[Hearer], Awaitable[None]]) -> None:
    """Run a test's work with a hearer that has begun."""

    async def run() -> None:
        hearer = Hearer(folder)
        await hearer.member.replica.start()
        await work(hearer)
        await hearer.member.replica.stop()

    asyncio.run(run())


def test_a_spoilt_record_is_what_it_was_and_goes_when_it_is_deleted(tmp_path: Path) -> None:
    """A byte in the store takes no name away, and keeps none for ever."""

    async def work(hearer: Hearer) -> None:
        await hearer.tell()
        assert hearer.names() == ["web"]
        await hearer.tell(b"{spoilt")
        assert hearer.names() == ["web"]
        await hearer.member.replica.write({}, deletes=[KEY])
        assert hearer.names() == []
        await hearer.tell(b"{spoilt from the first")
        assert hearer.names() == []

    heard(tmp_path, work)


def test_a_host_that_says_nothing_is_named_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its last heartbeat, while the store answers; and it is back with the next heartbeat."""
    clock = 1000.0
    monkeypatch.setattr(remote_names, "now", lambda: clock)

    async def work(hearer: Hearer) -> None:
        nonlocal clock
        replica = hearer.member.replica
        await hearer.tell()
        assert hearer.names() == ["web"]
        clock += remote_names.SILENT - 0.1
        replica.heard = clock
        assert hearer.names() == ["web"]
        clock += 0.2
        assert hearer.names() == []
        await hearer.beat()
        assert hearer.names() == ["web"]

    heard(tmp_path, work)


def test_a_store_that_tells_nothing_makes_nobody_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without the store does not judge, and counts again from zero when the store is back."""
    clock = 1000.0
    monkeypatch.setattr(remote_names, "now", lambda: clock)

    async def work(hearer: Hearer) -> None:
        nonlocal clock
        replica = hearer.member.replica
        await hearer.tell()
        clock += 100
        replica.heard = clock - remote_names.STUCK - 1
        assert hearer.names() == ["web"]
        replica.heard = clock
        clock += 1
        assert hearer.names() == ["web"]

    heard(tmp_path, work)


def test_a_host_whose_word_has_expired_or_never_came_is_not_named(tmp_path: Path) -> None:
    """Its endpoints stay published."""

    async def work(hearer: Hearer) -> None:
        await hearer.member.replica.write({KEY: MADE})
        assert hearer.names() == []
        await hearer.beat()
        assert hearer.names() == ["web"]
        await hearer.member.replica.write({}, deletes=["alive/h2"])
        assert hearer.names() == []

    heard(tmp_path, work)
