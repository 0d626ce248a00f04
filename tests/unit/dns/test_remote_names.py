"""The other hosts' names: of endpoints that are published, on hosts that live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from linkspan.core.model import Endpoint
from linkspan.dns.remote_names import Elsewhere
from linkspan.store.memory import Memory
from support.polling import eventually
from support.records.replicas import Member

KEY = "endpoints/h2/c1/eth0"
MADE = Endpoint(id="c1", ifname="eth0", network="demo", host="h2", name="web", addresses=("10.244.1.2/32",))


class Hearer:
    """Host h1, which hears of h2."""

    def __init__(self, folder: Path) -> None:
        self.memory = Memory()
        self.member = Member(self.memory, folder, "h1")
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


def test_a_host_whose_record_of_liveness_is_gone_is_named_no_more(tmp_path: Path) -> None:
    """Its names end after its absence has lasted, though its endpoints stay published; its record brings them back."""

    async def work(hearer: Hearer) -> None:
        await hearer.member.replica.write({KEY: MADE})
        assert hearer.names() == []
        await hearer.beat()
        assert hearer.names() == ["web"]
        await hearer.member.replica.write({}, deletes=["alive/h2"])
        assert hearer.names() == ["web"]
        await eventually(lambda: hearer.names() == [], "h2 is taken for dead")
        await hearer.beat()
        assert hearer.names() == ["web"]

    heard(tmp_path, work)


def test_nobody_is_taken_for_dead_while_the_store_is_full(tmp_path: Path) -> None:
    """A host that cannot get a lease lives, perhaps, and its containers keep their names."""

    async def work(hearer: Hearer) -> None:
        await hearer.member.replica.write({KEY: MADE})
        assert hearer.names() == []
        hearer.memory.full = True
        await hearer.member.replica.absences.look()
        assert hearer.names() == ["web"]

    heard(tmp_path, work)
