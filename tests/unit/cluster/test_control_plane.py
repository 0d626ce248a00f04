"""Control plane addresses of an agent: by names, by records, and by its file."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan.cluster.control_plane import FILE, MOST, Control, ControlPlane, parsed, resolved
from linkspan.core.model import Host, Network
from linkspan.store.memory import Memory, MemoryStore
from support.records.replicas import Member

Names = dict[str, list[str]]


class Served(MemoryStore):
    """A store that says that it is served at these places."""

    at: tuple[str, ...] = ()

    async def services(self) -> tuple[str, ...]:
        """Return them."""
        return self.at


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Answer for these names instead of the machine's resolver."""
    known: Names = {}

    async def answer(_loop: object, host: str, _port: object, **_more: object) -> list[Any]:
        if host not in known and not host[0].isdigit() and ":" not in host:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(0, 0, 0, "", (address, 0)) for address in known.get(host, [host])]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", answer)
    return known


class Stage:
    """A host with a store that is served somewhere."""

    def __init__(self, folder: Path, at: tuple[str, ...], local: tuple[str, ...] = ("192.0.2.1",)) -> None:
        self.memory = Memory()
        self.store = Served(self.memory)
        self.store.at = at
        self.member = Member(self.memory, folder, "h1", self.store)
        self.local = local
        self.folder = folder
        self.made()

    def made(self) -> None:
        """Begin as a new agent does, with what is on the disk."""
        member = self.member
        self.control = ControlPlane(
            self.folder,
            member.replica,
            member.own_record,
            member.hosts,
            member.networks,
            self._addresses,
            self._changed,
        )

    async def _addresses(self) -> frozenset[str]:
        return frozenset(self.local)

    async def _changed(self) -> None:
        pass


def run(folder: Path, at: tuple[str, ...], work: Callable[[Stage], Any], **more: Any) -> None:
    async def go() -> None:
        stage = Stage(folder, at, **more)
        await stage.member.start()
        try:
            await work(stage)
        finally:
            await stage.member.stop()

    asyncio.run(go())


def test_a_name_is_closed_at_all_addresses_that_it_ever_had(tmp_path: Path, names: Names) -> None:
    """A resolver may give other addresses of a name each time, or none."""

    async def work(stage: Stage) -> None:
        names["etcd.example"] = ["192.0.2.7", "2001:db8::7"]
        assert await stage.control.look()
        first = {("192.0.2.7", 2379), ("2001:db8::7", 2379)}
        assert set(stage.control.closed().places) == first
        names["etcd.example"] = ["192.0.2.8"]
        await stage.control.look()
        assert set(stage.control.closed().places) == first | {("192.0.2.8", 2379)}
        del names["etcd.example"]
        assert not await stage.control.look()
        assert stage.member.hosts.here.control == ("192.0.2.7:2379", "192.0.2.8:2379", "[2001:db8::7]:2379")

    run(tmp_path, ("etcd.example:2379",), work)


def test_an_agent_that_starts_without_a_resolver_remembers(tmp_path: Path, names: Names) -> None:
    """Rules are there before a name is resolved again; a spoilt file is as none."""

    async def work(stage: Stage) -> None:
        names["etcd.example"] = ["192.0.2.7"]
        await stage.control.look()
        names.clear()
        stage.made()
        assert stage.control.closed().places == (("192.0.2.7", 2379),)
        (stage.folder / FILE).write_bytes(b"{")
        stage.made()
        assert stage.control.closed().places == ()

    run(tmp_path, ("etcd.example:2379",), work)


def _network(backend: str, length: int) -> Network:
    return Network(
        name="demo", pools=("10.1.0.0/16",), subnet_len={"4": length}, backend=backend, gateways=("10.1.0.1",)
    )


def test_a_store_on_this_host_is_told_with_all_addresses(tmp_path: Path, names: Names) -> None:
    """Others learn each address of the host, and nothing of loopback or of containers' pools."""

    async def work(stage: Stage) -> None:
        network = _network("bridge", 16)
        await stage.member.replica.write({"networks/demo": network})
        stage.member.networks.refresh()
        await stage.control.look()
        closed = stage.control.closed()
        assert closed.here == (2379,)
        assert ("10.1.0.1", 2379) in closed.places
        assert ("127.0.0.1", 2379) in closed.places
        assert stage.member.hosts.here.control == ("192.0.2.1:2379", "[2001:db8::1]:2379")

    run(tmp_path, ("127.0.0.1:2379",), work, local=("192.0.2.1", "2001:db8::1", "10.1.0.1"))


def test_records_of_other_hosts_and_of_the_controller_count(tmp_path: Path, names: Names) -> None:
    """Places in records are closed here too, except invalid ones, containers' addresses, and wildcard addresses."""

    async def work(stage: Stage) -> None:
        network = _network("ipip", 24)
        said = ("198.51.100.9:2379", "10.1.2.3:80", "127.0.0.1:22", "[fe80::1]:22", "0.0.0.0:1", "word", "192.0.2.9")
        await stage.member.replica.write(
            {
                "networks/demo": network,
                "hosts/h2": Host(id="h2", name="h2", control=said),
                "settings/control": Control(("192.0.2.250:6653",)),
            }
        )
        stage.member.networks.refresh()
        assert stage.control.closed().places == (("192.0.2.250", 6653), ("198.51.100.9", 2379))

    run(tmp_path, (), work)


def test_one_record_closes_a_bounded_number_of_places() -> None:
    """A record with a hundred thousand addresses costs what MOST cost."""
    many = [f"192.0.{n // 256 % 256}.{n % 256}:80" for n in range(100_000)]
    assert len(parsed(many)) == MOST


def test_services_whose_hosts_have_no_address_are_left_out(names: Names) -> None:
    """One name that nobody knows keeps no other from being resolved."""
    found = asyncio.run(resolved(["nobody.example:1", "192.0.2.1:2", "[2001:db8::1]:3"]))
    assert found == {"192.0.2.1:2": ["192.0.2.1"], "[2001:db8::1]:3": ["2001:db8::1"]}


def test_a_host_s_record_without_places_is_as_before() -> None:
    """Records of older agents have none."""
    assert msgspec.json.decode(b'{"id": "h", "name": "h"}', type=Host).control == ()
