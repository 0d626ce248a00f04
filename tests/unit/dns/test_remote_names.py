"""The other hosts' names: of endpoints that are published, on hosts that live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from linkspan.core.model import Endpoint, Lease, Network
from linkspan.dns import zone
from linkspan.dns.remote_names import RemoteNames
from linkspan.store.memory import Memory
from support.polling import eventually
from support.records.replicas import Member, network

KEY = "endpoints/h2/c1/eth0"
MADE = Endpoint(id="c1", ifname="eth0", network="demo", host="h2", name="web", addresses=("10.244.1.2/32",))
DEMO = network()


class Hearer:
    """Host h1, which has a container in network demo, and hears of h2, which has a lease there."""

    def __init__(self, folder: Path) -> None:
        self.memory = Memory()
        self.member = Member(self.memory, folder, "h1")
        self.others = RemoteNames(self.member.replica, self.member.remote, "h1")

    async def start(self) -> None:
        """Begin."""
        await self.member.replica.start()
        await self.member.replica.write({"leases/demo/h2": Lease(network="demo", host="h2")})
        self.member.holds(DEMO, "c0", "10.244.0.2/32")
        self.member.interest.start()

    async def stop(self) -> None:
        """End."""
        await self.member.interest.stop()
        await self.member.replica.stop()

    async def tell(self, value: bytes | Endpoint = MADE) -> None:
        """Have h2 say that it lives, and publish."""
        await self.member.replica.write({"alive/h2": b"h2", KEY: value})

    async def beat(self) -> None:
        """Have h2 say once more that it lives."""
        await self.member.replica.write({"alive/h2": b"h2"})

    def names(self) -> list[str]:
        """Return the first names of what is known."""
        self.others.look()
        return [line.split()[1].partition(".")[0] for line in (self.others.text(DEMO) or b"").decode().splitlines()]

    async def read(self) -> None:
        """Wait until everything that matters is known."""
        await eventually(lambda: self.others.look() and self.others.text(DEMO) is not None, "h1 has read all")


def heard(folder: Path, work: Callable[[Hearer], Awaitable[None]]) -> None:
    """Run a test's work with a hearer that has begun."""

    async def run() -> None:
        hearer = Hearer(folder)
        await hearer.start()
        await hearer.read()
        await work(hearer)
        await hearer.stop()

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


def test_what_a_silent_host_changed_is_named_when_it_is_back(tmp_path: Path) -> None:
    """Its lines are made again then, in their place among the others'."""

    async def work(hearer: Hearer) -> None:
        put = hearer.member.replica.write
        for number, name in ((3, "db"), (4, "mail")):
            host, addresses = f"h{number}", (f"10.244.{number}.2/32",)
            await put({f"leases/demo/{host}": Lease(network="demo", host=host), f"alive/{host}": host.encode()})
            made = msgspec.structs.replace(MADE, host=host, name=name, addresses=addresses)
            await put({f"endpoints/{host}/c1/eth0": made})
        await hearer.tell()
        await eventually(lambda: hearer.names() == ["web", "db", "mail"], "all are known")
        await put({}, deletes=["alive/h3"])
        await eventually(lambda: hearer.names() == ["web", "mail"], "h3 is taken for dead")
        changed = msgspec.structs.replace(MADE, host="h3", name="cache", addresses=("10.244.3.2/32",))
        await put({"endpoints/h3/c1/eth0": changed})
        assert hearer.names() == ["web", "mail"]
        await put({"alive/h3": b"h3"})
        assert hearer.names() == ["web", "cache", "mail"]

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


def test_a_change_costs_the_lines_of_its_own_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' lines are as they were; a container that moves to another network leaves its name there."""

    async def work(hearer: Hearer) -> None:
        put = hearer.member.replica.write
        await put({"leases/demo/h3": Lease(network="demo", host="h3"), "alive/h3": b"h3"})
        await hearer.tell()
        third = msgspec.structs.replace(MADE, host="h3", name="db", addresses=("10.244.3.2/32",))
        await put({"endpoints/h3/c1/eth0": third})
        await eventually(lambda: hearer.names() == ["web", "db"], "both are known")
        made: list[list[tuple[str, ...]]] = []
        lines = zone.hosts

        def noted(of: Network, every: Iterable[zone.Named]) -> bytes:
            known = list(every)
            made.append([one.names for one in known])
            return lines(of, known)

        monkeypatch.setattr(zone, "hosts", noted)
        await hearer.tell(msgspec.structs.replace(MADE, name="shop"))
        assert hearer.names() == ["shop", "db"]
        assert made == [[("shop", "c1")]]
        await hearer.tell(msgspec.structs.replace(MADE, network="other"))
        assert hearer.names() == ["db"]
        assert len(made) == 1

    heard(tmp_path, work)


def test_names_are_not_told_before_all_endpoints_of_the_network_are_read(tmp_path: Path) -> None:
    """Until then the file of the last agent stays; without the store nothing that is known goes."""

    async def work() -> None:
        hearer = Hearer(tmp_path)
        await hearer.tell()
        await hearer.start()
        hearer.member.store.cut()
        hearer.others.look()
        assert hearer.others.text(DEMO) is None
        hearer.member.store.mend()
        await hearer.read()
        assert hearer.names() == ["web"]
        hearer.member.store.cut()
        hearer.member.remote.listed()
        assert hearer.names() == ["web"]
        await hearer.stop()

    asyncio.run(work())


def test_a_network_that_mattered_before_has_no_names_of_then(tmp_path: Path) -> None:
    """Nobody was told of names that went meanwhile: the file is made again from what is read now."""

    async def work(hearer: Hearer) -> None:
        await hearer.tell()
        await eventually(lambda: hearer.names() == ["web"], "it is known")
        remote = hearer.member.remote
        remote.want({})
        await hearer.member.replica.write({}, deletes=[KEY])
        assert hearer.others.text(DEMO) is None
        remote.want({"demo": ["h2"]})
        await hearer.read()
        assert hearer.names() == []

    heard(tmp_path, work)
