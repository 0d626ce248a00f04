"""A voter's vault and signer over an etcd in memory, for tests of what they decide."""

from __future__ import annotations

import asyncio
import datetime
import time
from pathlib import Path

import pytest

from linkspan.cluster.founding import certificates, exclusion
from linkspan.cluster.founding.join_token import TokenRecord, hashed
from linkspan.cluster.founding.reissue import Reissue
from linkspan.cluster.founding.signer import REVOKED, TOKENS, JoinWish, Revoked, Signer, Welcome
from linkspan.cluster.founding.trust_files import TrustFiles
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
        self.reissue = Reissue(self.files, self.vault, 3600)
        self.signer = Signer(self.files, self.vault, lambda: ("192.0.2.1:5379",), "c1", 3600)

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

    async def join(self, host: str, token: str, key: bytes, name: str = "") -> Welcome:
        """Let a host join with a token and a key; its name is its id if none is given."""
        request = certificates.request(key).decode()
        return await self.signer.admit(JoinWish(token, SECRET, host, name or host, request, PASSWORD))

    async def forget(self, host: str, *, known: bool) -> None:
        """Forget a host."""
        await exclusion.exclude(self.vault, host, self._publish, known=known)

    async def states(self) -> dict[str, str]:
        """Return the state of each token."""
        return {id_: one.state(time.time()) for id_, one in (await self.vault.all(TOKENS, TokenRecord)).items()}
