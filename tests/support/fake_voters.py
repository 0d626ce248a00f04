"""Voters in memory: their vault, and what each one's etcd answers, for tests of who may act."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from linkspan.core.store_url import etcd_parts
from linkspan.store import vault as vaults
from linkspan.store.etcd_errors import Failed
from linkspan.store.etcd_wire import Json, Member, Members
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.vault import Vault


def member(host: str, *, learner: bool = False) -> Member:
    """Return etcd's member on a host, whose id is its address's last byte, too; a learner has no name yet."""
    address = f"192.0.2.{host}"
    clients = () if learner else (f"https://{address}:5379",)
    name = "" if learner else f"voter-{host}"
    return Member(id=host, name=name, peers=(f"https://{address}:5380",), clients=clients, learner=learner)


class Gateway:
    """The connections to them."""

    def __init__(self, *places: str) -> None:
        self.members: tuple[Member, ...] = ()
        self.silent: set[str] = set()
        """The hosts whose etcd does not answer."""
        self.leaderless = False
        """Whether those that answer know no leader."""
        self.url = etcd_parts(f"etcd://{','.join(places) or '192.0.2.1:5379'}/linkspan-trust")
        self.endpoint = "any"
        self.promoted: list[tuple[str, str]] = []
        """Where a member was to be promoted, and its id."""
        self.refusal: Exception | None = None
        """What etcd says to a new member."""

    def follow(self, places: tuple[str, ...]) -> None:
        """Use other endpoints."""
        self.url = msgspec.structs.replace(self.url, endpoints=places)

    async def ask(self, _path: str, _body: Json, _kind: Any) -> Members:
        """Return the members."""
        return Members(members=self.members)

    async def call(self, path: str, body: Json, seconds: float = 0) -> tuple[bytes, bool]:
        """Return what an etcd says that answers."""
        return await self.at(self.endpoint, path, body, seconds), False

    async def openly(self, place: str, path: str, body: Json, seconds: float) -> bytes:
        """Return what one etcd says of itself or of all, to anybody."""
        said = await self.at(place, path, body, seconds)
        return msgspec.json.encode(Members(members=self.members)) if path.endswith("member/list") else said

    async def at(self, place: str, path: str, body: Json, _seconds: float) -> bytes:
        """Return what one etcd says of itself; the first member leads."""
        if path.endswith("member/promote"):
            self.promoted.append((place, str(body["ID"])))
        if path.endswith("member/add") and self.refusal is not None:
            raise self.refusal
        host = place.removeprefix("192.0.2.").removesuffix(":5379")
        if host in self.silent:
            raise Failed(f"{place} does not answer", "", sent=False, unanswered=True)
        leader = "0" if self.leaderless else self.members[0].id
        return msgspec.json.encode({"header": {"member_id": host}, "leader": leader})


class Voters:
    """Voters with a vault."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hosts: Iterable[str]) -> None:
        memory, self.gateway = Memory(), Gateway()
        self.gateway.members = tuple(map(member, hosts))
        monkeypatch.setattr(vaults, "EtcdStore", lambda _url: MemoryStore(memory))
        monkeypatch.setattr(Vault, "gateway", self.gateway)
        self.vault = Vault("", "/linkspan/")
