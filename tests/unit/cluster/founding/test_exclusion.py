"""Joins and exclusion: hosts that join at once, and what a forgotten host can still do with its key and its tokens."""

from __future__ import annotations

import asyncio
import datetime
import time
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster.founding import certificates, exclusion
from linkspan.cluster.founding.join_token import KEPT_SECONDS, TokenRecord, hashed
from linkspan.cluster.founding.signer import HOSTS, REVOKED, TOKENS, JoinedHost, JoinWish, Revoked, Signer
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import Conflict, Denied
from linkspan.store import vault as vaults
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.vault import Vault

SECRET, PASSWORD = "5" * 32, "6" * 32


class Etcd:
    """An etcd that keeps a vault's values in memory, and has the users' passwords."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        memory = Memory()
        monkeypatch.setattr(vaults, "EtcdStore", lambda _url: MemoryStore(memory))
        self.passwords: dict[str, str] = {}
        self.published: frozenset[str] = frozenset()
        self.changing = self.most_changing = 0
        """How many joins change users at the moment, and at most."""
        monkeypatch.setattr(Vault, "admit", self._admit)
        monkeypatch.setattr(Vault, "dismiss", self._dismiss)
        self.files = TrustFiles(folder)
        key = self.files.once(self.files.authority_key, certificates.new_key)
        authority = certificates.new_authority(key, "clients", datetime.datetime.now(datetime.UTC))
        self.files.put(self.files.authority, authority)
        self.vault = Vault("", "/linkspan/")
        self.signer = Signer(self.files, self.vault, lambda: ("192.0.2.1:5379",), "c1")

    async def _admit(self, host: str, password: str) -> None:
        self.changing += 1
        self.most_changing = max(self.changing, self.most_changing)
        await asyncio.sleep(0.05)
        self.passwords[host] = password
        self.changing -= 1

    async def _dismiss(self, host: str) -> None:
        self.passwords.pop(host, None)

    async def _publish(self) -> None:
        self.published = frozenset(await self.vault.all(REVOKED, Revoked))

    async def token(self, id_: str, uses: int = 0, *, member: bool = False) -> None:
        """Make a token with SECRET."""
        now = time.time()
        record = TokenRecord(hash=hashed(SECRET), created=now, expires=now + 99, uses=uses, member=member)
        await self.vault.put({TOKENS + id_: (record, 0)})

    async def join(self, host: str, token: str, key: bytes) -> None:
        """Let a host join with a token and a key."""
        request = certificates.request(key).decode()
        await self.signer.admit(JoinWish(token, SECRET, host, host, request, PASSWORD))

    async def forget(self, host: str, *, known: bool) -> None:
        """Forget a host."""
        await exclusion.exclude(self.vault, host, self._publish, known=known)

    async def states(self) -> dict[str, str]:
        """Return the state of each token."""
        return {id_: one.state(time.time()) for id_, one in (await self.vault.all(TOKENS, TokenRecord)).items()}


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Etcd:
    """Give an etcd."""
    return Etcd(monkeypatch, tmp_path)


def test_a_forgotten_host_lets_itself_in_by_no_token_that_it_used(etcd: Etcd) -> None:
    """It knows them all, and a new key is made at once; the tokens of others stay good."""

    async def run() -> None:
        for id_, uses in (("a1", 0), ("b2", 1), ("c3", 0)):
            await etcd.token(id_, uses)
        key = certificates.new_key()
        await etcd.join("h2", "b2", key)
        await etcd.join("h2", "a1", key)
        await etcd.join("h3", "c3", certificates.new_key())
        await etcd.forget("h2", known=True)
        assert await etcd.states() == {"a1": "revoked", "b2": "revoked", "c3": "valid"}
        for id_ in ("a1", "b2"):
            with pytest.raises(Denied, match=f"token {id_} is revoked"):
                await etcd.join("h2", id_, certificates.new_key())
        assert "h2" not in etcd.passwords
        await etcd.token("d4")
        with pytest.raises(Conflict, match="was forgotten"):
            await etcd.join("h2", "d4", key)
        await etcd.join("h2", "d4", certificates.new_key())
        assert "h2" in etcd.passwords

    asyncio.run(run())


def test_a_host_that_is_forgotten_twice_comes_back_only_as_a_new_one(etcd: Etcd) -> None:
    """The first time removed its records, so the second time finds none: its addresses may be those of others."""

    async def run() -> None:
        await etcd.token("a1")
        key = certificates.new_key()
        await etcd.join("h2", "a1", key)
        await etcd.forget("h2", known=True)
        await etcd.forget("h2", known=False)
        await etcd.token("b2")
        with pytest.raises(Conflict, match="was forgotten"):
            await etcd.join("h2", "b2", key)

    asyncio.run(run())


def test_a_host_whose_join_broke_off_may_come_back_with_its_key(etcd: Etcd) -> None:
    """It never had an address."""

    async def run() -> None:
        await etcd.token("a1")
        key = certificates.new_key()
        await etcd.join("h2", "a1", key)
        await etcd.forget("h2", known=False)
        assert await etcd.vault.all(HOSTS, JoinedHost) == {}
        await etcd.token("b2")
        await etcd.join("h2", "b2", key)

    asyncio.run(run())


def test_hosts_that_join_at_once_take_turns(etcd: Etcd) -> None:
    """Otherwise each of them makes the login of the other ones old, and some are refused."""

    async def run() -> None:
        await etcd.token("a1")
        await asyncio.gather(*(etcd.join(f"h{number}", "a1", certificates.new_key()) for number in range(8)))
        assert len(etcd.passwords) == 8
        assert etcd.most_changing == 1

    asyncio.run(run())


def test_a_token_that_expired_long_ago_is_deleted_with_the_next_join(etcd: Etcd) -> None:
    """One that expired lately is still listed."""

    async def run() -> None:
        await etcd.token("a1")
        for id_, ago in (("b2", 60.0), ("c3", KEPT_SECONDS + 60)):
            then = time.time() - ago
            await etcd.vault.put({TOKENS + id_: (TokenRecord(hash="", created=then, expires=then), 0)})
        await etcd.join("h2", "a1", certificates.new_key())
        assert await etcd.states() == {"a1": "valid", "b2": "expired"}

    asyncio.run(run())


def test_a_host_with_many_certificates_is_forgotten_whole(etcd: Etcd) -> None:
    """More than one transaction holds."""

    async def run() -> None:
        await etcd.token("a1")
        await etcd.join("h2", "a1", certificates.new_key())
        joined, revision = await etcd.vault.get(HOSTS + "h2", JoinedHost)
        assert joined is not None
        many = msgspec.structs.replace(joined, serials=tuple(f"{number:x}" for number in range(1, 301)))
        await etcd.vault.put({HOSTS + "h2": (many, revision)})
        await etcd.forget("h2", known=True)
        assert len(etcd.published) == 300

    asyncio.run(run())


def test_a_host_that_left_may_come_back_with_another_key(etcd: Etcd) -> None:
    """Its user and its certificates have ended, and its token is still good: it left by its own wish."""

    async def run() -> None:
        await etcd.token("a1")
        await etcd.join("h2", "a1", certificates.new_key())
        await exclusion.release(etcd.vault, "h2")
        assert "h2" not in etcd.passwords
        revoked = await etcd.vault.all(REVOKED, Revoked)
        assert [one.cut for one in revoked.values()] == [False]
        assert await etcd.vault.all(HOSTS, JoinedHost) == {}
        await exclusion.release(etcd.vault, "h2")
        await etcd.join("h2", "a1", certificates.new_key())

    asyncio.run(run())


def test_only_a_token_that_allows_it_lets_a_host_become_a_voter(etcd: Etcd) -> None:
    """A later join by another token takes nothing away."""

    async def run() -> None:
        await etcd.token("a1")
        await etcd.token("b2", member=True)
        key = certificates.new_key()
        for token, member in (("a1", False), ("b2", True), ("a1", True)):
            await etcd.join("h2", token, key)
            joined, _ = await etcd.vault.get(HOSTS + "h2", JoinedHost)
            assert joined is not None
            assert joined.member is member

    asyncio.run(run())
