"""The vault: users and roles of linkspan's own etcd, and values beside the records, on a real etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.core.store_url import TRUST
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_errors import Refused
from linkspan.store.vault import SHARED, Vault
from support.store.etcd_members import Members

pytestmark = pytest.mark.root

RECORDS = "/linkspan/"


class Value(msgspec.Struct, frozen=True):
    """A value of the tests."""

    word: str


@pytest.fixture
def etcd() -> Iterator[Members]:
    """Give an etcd of one member for this test alone, because its users are changed."""
    with Members.started(1) as started, started.inside():
        yield started


def password(folder: Path, name: str, text: str) -> str:
    """Write a password, and return its file."""
    file = folder / name
    file.write_text(text)
    file.chmod(0o600)
    return str(file)


@asynccontextmanager
async def vault(etcd: Members, folder: Path) -> AsyncIterator[Vault]:
    """Give the vault as root."""
    (member,) = etcd.members
    file = password(folder, "root", "secret of root")
    made = Vault(f"etcd://{member.client}/{TRUST}?user=root&password-file={file}", RECORDS)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def records(etcd: Members, folder: Path, host: str, word: str) -> AsyncIterator[EtcdStore]:
    """Give the records as a host."""
    (member,) = etcd.members
    file = password(folder, host, word)
    store = EtcdStore(f"etcd://{member.client}/linkspan?user=host-{host}&password-file={file}")
    try:
        yield store
    finally:
        await store.close()


async def allowed(store: EtcdStore, key: str) -> bool:
    """Return whether a host may write a record."""
    try:
        return bool(await store.transaction({key: b"1"}))
    except Refused as error:
        return "permission denied" not in error.message


async def begin(one: Vault) -> None:
    """Let in two hosts, of which the first is a voter, which gives the records their cluster."""
    for _ in range(2):
        await one.enable("secret of root")
    await one.admit("v", "secret of v", voter=True)
    for word in ("old secret of a", "secret of a"):  # again, as after a join that broke off
        await one.admit("a", word)


async def test_a_host_writes_its_own_records_and_those_of_all(etcd: Members, tmp_path: Path) -> None:
    """A voter's user writes every record; nobody's but root's reads the vault."""
    async with vault(etcd, tmp_path) as one:
        await begin(one)
        await one.put({"tokens/t": (Value("x"), 0)})
    async with records(etcd, tmp_path, "v", "secret of v") as voter:
        assert await allowed(voter, "hosts/a")
        async with records(etcd, tmp_path, "a", "secret of a") as host:
            assert (await host.get("hosts/a")) is not None
            mine = ("hosts/a", "alive/a", "endpoints/a/c/eth0", *(f"{prefix}x" for prefix in SHARED))
            assert [key for key in mine if not await allowed(host, key)] == []
            others = ("hosts/v", "hosts/aa", "hosts/a/x", "alive/v", "endpoints/aa/c/eth0", "endpoints/a", "x")
            assert [key for key in others if await allowed(host, key)] == []
        (member,) = etcd.members
        file = tmp_path / "a"
        secrets = EtcdStore(f"etcd://{member.client}/{TRUST}?user=host-a&password-file={file}")
        with pytest.raises(LinkspanError, match="permission denied"):
            await secrets.get("tokens/t")
        await secrets.close()


async def test_a_cluster_of_an_earlier_version_shares_what_this_one_does(
    etcd: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A voter grants at its start what hosts may write, and leaves alone what is granted already."""
    async with vault(etcd, tmp_path) as one:
        with monkeypatch.context() as earlier:
            earlier.setattr("linkspan.store.vault.SHARED", tuple(word for word in SHARED if word != "policies/"))
            await begin(one)
        async with records(etcd, tmp_path, "v", "secret of v") as voter:
            assert await allowed(voter, "policies/y")
        async with records(etcd, tmp_path, "a", "secret of a") as host:
            assert not await allowed(host, "policies/x")
            await one.share()
            assert await allowed(host, "policies/x")
        granted: list[str] = []

        async def grant(_role: str, _kind: str, keys: str) -> None:
            granted.append(keys)

        monkeypatch.setattr(one, "_grant", grant)
        await one.share()
        assert granted == []


async def test_only_the_last_password_lets_a_host_in(etcd: Members, tmp_path: Path) -> None:
    """And none after it was dismissed, which may be repeated."""
    async with vault(etcd, tmp_path) as one:
        await begin(one)
        async with records(etcd, tmp_path, "v", "secret of v") as voter:
            await voter.get("hosts/a")
        async with records(etcd, tmp_path, "a", "old secret of a") as host:
            with pytest.raises(Unavailable, match="is refused"):
                await host.get("hosts/a")
        async with records(etcd, tmp_path, "a", "secret of a") as host:
            await host.get("hosts/a")
            for _ in range(2):
                await one.dismiss("a")
            with pytest.raises(LinkspanError):
                await host.get("hosts/a")


async def test_a_value_is_put_only_over_what_was_read(etcd: Members, tmp_path: Path) -> None:
    """All values of a change, or none: two voters may use a token at once."""
    async with vault(etcd, tmp_path) as one:
        await begin(one)
        assert await one.get("tokens/t", Value) == (None, 0)
        assert await one.put({"tokens/t": (Value("first"), 0)})
        assert not await one.put({"tokens/t": (Value("second"), 0), "hosts/a": (Value("a"), 0)})
        assert await one.get("hosts/a", Value) == (None, 0)
        found, revision = await one.get("tokens/t", Value)
        assert found == Value("first")
        assert await one.put({"tokens/t": (Value("third"), revision), "hosts/a": (Value("a"), 0)})
        assert await one.all("tokens/", Value) == {"t": Value("third")}
        _, revision = await one.get("tokens/t", Value)
        assert await one.put({"tokens/t": (None, revision)})
        assert await one.all("tokens/", Value) == {}
