"""Tokens while authorities change: those of the old one end, and a new token names the one that stays."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster.founding import certificates, foundation
from linkspan.cluster.founding.authority_plan import (
    CLIENTS,
    DROP,
    PEERS,
    ROTATION,
    SIGN,
    TRUST,
    RotationRecord,
)
from linkspan.cluster.founding.authority_rotation import for_joiners, revoke_tokens
from linkspan.store.vault import Vault
from support.memory_vault import Etcd


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Etcd:
    """Give an etcd."""
    return Etcd(monkeypatch, tmp_path)


def test_a_token_that_is_used_just_now_is_revoked_all_the_same(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else changes it at the same moment."""
    real, failures = Vault.put, [1, 2]

    async def put(vault: Vault, values: Mapping[str, tuple[msgspec.Struct | None, int]]) -> bool:
        return False if failures and failures.pop() else await real(vault, values)

    async def run() -> None:
        await etcd.token("a1")
        monkeypatch.setattr(Vault, "put", put)
        await revoke_tokens(etcd.vault)
        assert await etcd.states() == {"a1": "revoked"}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("step", "kind", "is_new"),
    [(TRUST, CLIENTS, False), (SIGN, CLIENTS, True), (DROP, CLIENTS, True), (SIGN, PEERS, False)],
)
def test_a_token_names_the_authority_that_stays(etcd: Etcd, step: str, kind: str, *, is_new: bool) -> None:
    """This voter still has the old one."""
    new = certificates.new_authority(certificates.new_key(), "clients", datetime.datetime.now(datetime.UTC))

    async def run() -> None:
        rotation = RotationRecord(id="r1", step=step, begun=0.0, authorities={kind: new.decode()}, sealed="")
        await etcd.vault.put({ROTATION: (rotation, 0)})
        authority = await for_joiners(etcd.files, etcd.vault)
        token = await foundation.create_token(etcd.vault, authority, ["192.0.2.1:5381"])
        wanted = new if is_new else etcd.files.authority.read_bytes()
        assert token.authority == certificates.fingerprint(wanted)

    asyncio.run(run())
