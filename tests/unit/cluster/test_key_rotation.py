"""A host's own keys: how they are made and refused, and what becomes of a change that cannot be written down."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster.key_rotation import GATHER, KeyRotation
from linkspan.core.driver_contract import Support
from linkspan.core.errors import Denied, Invalid, KernelError, LinkspanError, Unavailable
from linkspan.core.host_view import HostView, Other
from linkspan.core.model import Host, Underlay
from linkspan.core.states.host import Key
from linkspan.kernel.drivers.wireguard import WireguardDriver
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.probe.keys import NEXT, PRIVATE, KeyFolder
from linkspan.store.memory import Memory
from support.memory_machine import MemoryMachine, worker_of
from support.records.replicas import Member
from support.virtual_time import clock, in_virtual_time

pytestmark = pytest.mark.skipif(shutil.which("wg") is None, reason="needs wg: apt install wireguard-tools")


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    """Give a folder with a key in use."""
    found = KeyFolder(tmp_path / "wireguard")
    found.make(PRIVATE)
    return found


def test_a_key_is_made_for_root_alone_and_known_by_its_public_one(folder: KeyFolder) -> None:
    """Another one is made beside it, and then takes its place."""
    file = folder.folder / PRIVATE
    assert file.stat().st_mode & 0o777 == 0o600
    one, other = folder.public(PRIVATE), folder.make(NEXT)
    assert one != other
    assert folder.holding(one) == file
    assert folder.holding(other) == folder.folder / NEXT
    folder.turn()
    assert (folder.public(PRIVATE), folder.public(NEXT)) == (other, "")
    assert folder.holding(one) is None


def _wide(file: Path) -> None:
    file.chmod(0o604)


def _short(file: Path) -> None:
    file.write_text("c2hvcnQ=\n")


def _no_text(file: Path) -> None:
    file.write_bytes(bytes(range(200, 245)))


def _a_link(file: Path) -> None:
    file.rename(file.with_name("other"))
    file.symlink_to("other")


def _a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir(0o700)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [(_wide, Denied), (_short, Invalid), (_no_text, Invalid), (_a_link, KernelError), (_a_folder, KernelError)],
)
def test_a_file_that_is_no_good_is_refused_by_name(
    folder: KeyFolder, spoil: Callable[[Path], None], error: type[LinkspanError]
) -> None:
    """Also if it was valid before; the error does not show its content."""
    file = folder.folder / PRIVATE
    text = file.read_text().strip()
    spoil(file)
    with pytest.raises(error) as refusal:
        folder.public(PRIVATE)
    assert str(file) in refusal.value.message
    assert text not in refusal.value.message


class Keeper(MemoryMachine):
    """A machine with a folder of keys."""

    def __init__(self, folder: KeyFolder) -> None:
        super().__init__()
        self.wireguard = WireguardDriver(Sockets(Namespaces()), folder.folder, lambda: Support("memory"))


class _Stage:
    """A host whose one peer takes its next key, and a store that may be away."""

    def __init__(self, folder: KeyFolder) -> None:
        self.folder, self.puts, self.away = folder, list[str](), False
        self.meanwhile: Callable[[], object] = lambda: None
        """Another task of the agent, which runs while this one waits."""
        self.other = Host(id="id2", name="h2")
        self.member = Member(Memory(), folder.folder, "id1")
        self.hosts = self.member.hosts
        worker = worker_of(Keeper(folder))
        self.key_rotation = KeyRotation(
            worker,
            self.member.own_record,
            self.hosts,
            self.member.event_log,
            self._view,
            self._put,
            self._register,
            self._changed,
        )

    async def recorded(self, public: str) -> None:
        """Have the store say which key this host has."""
        await self.member.replica.start()
        await self.member.replica.write({"hosts/id1": Host(id="id1", name="h1", keys={"wireguard": public})})

    def _view(self) -> HostView:
        return HostView((), others=(Other(self.other, ("demo",)),))

    async def _put(self) -> dict[Key, LinkspanError]:
        self.puts.append(self.hosts.here.keys["wireguard"])
        self.meanwhile()
        return {}

    async def _changed(self) -> None:
        """Look at no facts: the key's files are all that there is."""
        self.meanwhile()

    async def _register(self) -> None:
        if self.away:
            raise Unavailable("the store does not answer")


def test_a_change_waits_for_the_others_and_then_takes_place(folder: KeyFolder) -> None:
    """The device has the new key before the record says so; the old file is gone."""

    async def change() -> None:
        stage = _Stage(folder)
        await stage.key_rotation.settle()
        before = folder.public(PRIVATE)
        assert stage.hosts.here.keys == {"wireguard": before}
        told = await stage.key_rotation.begin()
        coming = folder.public(NEXT)
        assert (told.key, told.next, told.waiting) == (before[:10], coming[:10], ["h2"])
        await stage.key_rotation.advance()
        assert stage.puts == []
        stage.other = msgspec.structs.replace(stage.other, takes={"id1": coming})
        await stage.key_rotation.advance()
        assert stage.puts == [coming]
        assert (stage.hosts.here.keys, stage.hosts.here.next_keys) == ({"wireguard": coming}, {})
        assert (folder.public(PRIVATE), folder.public(NEXT)) == (coming, "")

    asyncio.run(change())


def test_where_the_store_is_away_the_device_gets_its_old_key_back(folder: KeyFolder) -> None:
    """And the change takes place once it is back."""

    async def change() -> None:
        stage = _Stage(folder)
        await stage.key_rotation.settle()
        before = folder.public(PRIVATE)
        await stage.key_rotation.begin()
        coming = folder.public(NEXT)
        stage.other = msgspec.structs.replace(stage.other, takes={"id1": coming})
        stage.away = True
        with pytest.raises(Unavailable, match="not in force yet: the store does not answer"):
            await stage.key_rotation.advance()
        assert stage.puts == [coming, before]
        assert stage.hosts.here.keys == {"wireguard": before}
        assert folder.public(PRIVATE) == before
        stage.away = False
        await stage.key_rotation.advance()
        assert folder.public(PRIVATE) == coming

    asyncio.run(change())


def test_a_change_of_the_key_keeps_what_other_tasks_write_into_the_record(folder: KeyFolder) -> None:
    """The underlay that another task finds meanwhile stays, when a key is announced, and when a turn is taken back."""

    async def change() -> None:
        stage = _Stage(folder)
        own = stage.member.own_record

        def once() -> None:
            own.change(control=("192.0.2.9:2379",))
            stage.meanwhile = lambda: None

        await stage.key_rotation.settle()
        stage.meanwhile = lambda: own.change(underlay=Underlay("eth1", ("192.0.2.1/24",)))
        await stage.key_rotation.begin()
        coming = folder.public(NEXT)
        assert (own.host.underlay, own.host.next_keys) == (Underlay("eth1", ("192.0.2.1/24",)), {"wireguard": coming})
        stage.other = msgspec.structs.replace(stage.other, takes={"id1": coming})
        stage.away = True
        stage.meanwhile = once
        with pytest.raises(Unavailable, match="not in force yet"):
            await stage.key_rotation.advance()
        assert (own.host.control, own.host.next_keys) == (("192.0.2.9:2379",), {"wireguard": coming})

    asyncio.run(change())


def test_the_keys_that_many_announce_are_taken_by_few_writes(folder: KeyFolder) -> None:
    """The first one at once; those of the next seconds together, though the host looks at each of them."""

    async def change() -> None:
        stage = _Stage(folder)
        key_rotation, said = stage.key_rotation, list[float]()
        await key_rotation.settle()
        others: list[Other] = []

        async def register() -> None:
            said.append(clock())

        key_rotation._register = register
        key_rotation._view = lambda: HostView((), others=tuple(others))
        begun = clock()
        for number in range(100):
            host = Host(id=f"o{number}", name=f"o{number}", next_keys={"wireguard": f"key{number}"})
            others.append(Other(host, ("demo",)))
            await key_rotation.advance()
            await asyncio.sleep(0.1)
        assert said[0] == begun
        assert key_rotation.gathering
        await asyncio.sleep(GATHER)
        await key_rotation.advance()
        assert not key_rotation.gathering
        assert stage.hosts.here.takes == {f"o{number}": f"key{number}" for number in range(100)}
        assert len(said) <= 4, said

    in_virtual_time(change)


def test_an_agent_that_ended_in_the_middle_goes_by_the_record(folder: KeyFolder) -> None:
    """If the record has the next key already, its file takes the place of the old one."""

    async def settle(recorded: str) -> Host:
        stage = _Stage(folder)
        await stage.recorded(recorded)
        await stage.key_rotation.settle()
        await stage.member.replica.stop()
        return stage.hosts.here

    before, coming = folder.public(PRIVATE), folder.make(NEXT)
    assert asyncio.run(settle(before)).next_keys == {"wireguard": coming}
    host = asyncio.run(settle(coming))
    assert (host.keys, host.next_keys) == ({"wireguard": coming}, {})
    assert folder.public(PRIVATE) == coming


def test_a_key_that_was_lost_is_not_made_anew_in_silence(folder: KeyFolder) -> None:
    """The record keeps the one that others know."""
    public = folder.public(PRIVATE)
    (folder.folder / PRIVATE).unlink()
    stage = _Stage(folder)

    async def settle() -> None:
        await stage.recorded(public)
        await stage.key_rotation.settle()
        await stage.member.replica.stop()

    asyncio.run(settle())
    assert stage.hosts.here.keys == {"wireguard": public}
    assert not (folder.folder / PRIVATE).exists()
