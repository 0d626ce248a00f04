"""Vault: users and roles of linkspan's own etcd, and what its voters keep beside the records, all as etcd's root.

Each host is a user with a random password. Its own role lets it write its own records, and no other host's. The role of
all hosts has what cannot be split by keys, because any host may have to write it: networks, claims of blocks and
addresses, and tombstones. A voter's user may write every record. docs/security.md says what follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec

from linkspan.core.errors import Conflict, Unavailable
from linkspan.core.store_url import HOST_USER, TRUST
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_errors import Refused
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_wire import Json

ROOT = "root"
"""etcd's own name for the user and the role that may do everything."""
HOSTS, VOTERS = "hosts", "voters"
"""The roles of all hosts, and of voters."""
SHARED = (
    "addresses/", "alive/(egress)/", "allowances/", "answer/", "ask/", "blocks/", "claims/", "gone/", "leases/",
    "networks/", "policies/", "reservations/", "settings/", "staged/", "upkeep/",
)  # fmt: skip
"""Prefixes of the records that every host may write."""
TRIES = 5
"""How often a change is tried: others change users and tokens at the same time."""

T = TypeVar("T")


def user_of(host: str) -> str:
    """Return the name of a host's user and of its role in etcd."""
    return f"{HOST_USER}{host}"


def permissions(records: str, host: str) -> Iterator[tuple[str, str]]:
    """Yield what the role of a host may write: keys, and prefixes that end with /."""
    for key in (f"hosts/{host}", f"alive/{host}", f"endpoints/{host}/"):
        yield "READWRITE", f"{records}{key}"


class _Permission(msgspec.Struct):
    key: bytes = b""


class _Role(msgspec.Struct):
    """etcd's answer about a role."""

    perm: tuple[_Permission, ...] = ()


class Vault:
    """Changes users and roles, and keeps values by key, as root of one etcd."""

    def __init__(self, url: str, records: str) -> None:
        """``url`` is root's, with the vault's prefix; ``records`` is the prefix of the hosts' records, /linkspan/."""
        self._store = EtcdStore(url)
        self._records = records

    @property
    def gateway(self) -> Gateway:
        """The connections, as etcd's root."""
        return self._store.gateway

    async def close(self) -> None:
        """Close the connections."""
        await self._store.close()

    async def ready(self) -> None:
        """Return if etcd answers, and has elected a leader. Raises Unavailable."""
        await self._store.gateway.call("/v3/kv/range", {"key": f"/{TRUST}/".encode()})

    async def enable(self, password: str) -> None:
        """Let in nobody but users; repeating it changes nothing. Raises Unavailable."""
        await self._make("user/add", {"name": ROOT, "password": password})
        await self._make("role/add", {"name": ROOT})
        await self._make("user/grant", {"user": ROOT, "role": ROOT})
        for role, kind, keys in self._common():
            await self._make("role/add", {"name": role})
            await self._grant(role, kind, keys)
        await self._make("enable", {})

    async def change_root(self, password: str) -> None:
        """Give root another password; logins with the one before end. Raises Unavailable."""
        await self._ask("user/changepw", {"name": ROOT, "password": password})

    async def share(self) -> None:
        """Let all hosts write what they share in this version: an earlier one may have founded the cluster.

        Nothing is granted twice, because each change of roles has every host log in again. Raises Unavailable.
        """
        found, _ = await self._store.gateway.call("/v3/auth/role/get", {"role": HOSTS})
        there = {permission.key for permission in _decoded(found, _Role, HOSTS).perm}
        for role, kind, keys in self._common():
            if role == HOSTS and keys.encode() not in there:
                await self._grant(role, kind, keys)

    def _common(self) -> Iterator[tuple[str, str, str]]:
        yield VOTERS, "READWRITE", self._records
        yield HOSTS, "READ", self._records
        for prefix in SHARED:
            yield HOSTS, "READWRITE", f"{self._records}{prefix}"

    async def admit(self, host: str, password: str, *, voter: bool = False) -> None:
        """Make a host's user with its role, or give an existing one a new password. Raises Unavailable."""
        name = user_of(host)
        await self._make("role/add", {"name": name})
        for kind, keys in permissions(self._records, host):
            await self._grant(name, kind, keys)
        if not await self._make("user/add", {"name": name, "password": password}):
            await self._ask("user/changepw", {"name": name, "password": password})
        for role in (name, HOSTS, *([VOTERS] if voter else [])):
            await self._make("user/grant", {"user": name, "role": role})

    async def enrol(self, host: str) -> None:
        """Let a host's user write every record: it is a voter now. Raises Unavailable."""
        await self._make("user/grant", {"user": user_of(host), "role": VOTERS})

    async def retire(self, host: str) -> None:
        """Let a host's user write its own records alone, as that of a client does. Raises Unavailable."""
        await self._unmake("user/revoke", {"name": user_of(host), "role": VOTERS})

    async def disband(self) -> None:
        """Let no host's user write every record any more, until it is enrolled again. Raises Unavailable."""
        await self._unmake("role/delete", {"role": VOTERS})  # etcd takes it from all users
        for role, kind, keys in self._common():
            if role == VOTERS:
                await self._make("role/add", {"name": role})
                await self._grant(role, kind, keys)

    async def dismiss(self, host: str) -> None:
        """Delete a host's user and role; missing ones are no error. Raises Unavailable."""
        await self._unmake("user/delete", {"name": user_of(host)})
        await self._unmake("role/delete", {"role": user_of(host)})

    async def get(self, key: str, kind: type[T]) -> tuple[T | None, int]:
        """Return a value, None if there is none, and the revision for ``put``. Raises Unavailable if it is damaged."""
        found = await self._store.get(key)
        return (None, 0) if found is None else (_decoded(found.value, kind, key), found.revision)

    async def all(self, prefix: str, kind: type[T]) -> dict[str, T]:
        """Return the values whose keys begin with ``prefix``, by the rest of the key."""
        found, _ = await self._store.list(prefix)
        return {one.key.removeprefix(prefix): _decoded(one.value, kind, one.key) for one in found}

    async def put(self, values: Mapping[str, tuple[msgspec.Struct | None, int]]) -> bool:
        """Put values (None: delete) if each key still has its revision (0: there is none); return whether it did."""
        puts = {key: msgspec.json.encode(value) for key, (value, _) in values.items() if value is not None}
        deletes = [key for key, (value, _) in values.items() if value is None]
        revisions = {key: revision for key, (_, revision) in values.items()}
        return bool(await self._store.transaction(puts, deletes, unchanged=revisions))

    async def hold(self, key: str, value: msgspec.Struct, seconds: float) -> bool:
        """Put a value for so many seconds if there is none; return whether there was none."""
        if await self._store.get(key) is not None:
            return False  # a lease of etcd's is made before the transaction, and outlives one that fails
        return bool(await self._store.transaction({key: msgspec.json.encode(value)}, absent=[key], ttl=seconds))

    async def tell(self, key: str, value: msgspec.Struct) -> None:
        """Put a record of the hosts, which they all see. Raises Unavailable."""
        put: Json = {"key": f"{self._records}{key}".encode(), "value": msgspec.json.encode(value)}
        await self.gateway.call("/v3/kv/put", put)

    async def _grant(self, role: str, kind: str, keys: str) -> None:
        permission: Json = {"permType": kind, "key": keys.encode()}
        if keys.endswith("/"):  # the range of a prefix ends before the next string of its length
            permission["range_end"] = keys[:-1].encode() + b"0"
        await self._ask("role/grant", {"name": role, "perm": permission})

    async def _make(self, path: str, body: Json) -> bool:
        """Make something; return whether it did not exist."""
        try:
            await self._ask(path, body)
        except Refused as error:
            if "already" not in error.message:
                raise
            return False
        return True

    async def _unmake(self, path: str, body: Json) -> None:
        try:
            await self._ask(path, body)
        except Refused as error:
            if "not found" not in error.message and "not granted" not in error.message:
                raise

    async def _ask(self, path: str, body: Json) -> None:
        """Carry out a change of users; a change of others at the same moment makes etcd refuse it."""
        for left in reversed(range(TRIES)):
            try:
                await self._store.gateway.call(f"/v3/auth/{path}", body)
            except Refused as error:
                if "auth store is old" not in error.message or not left:
                    raise
                await asyncio.sleep(0.05)
            else:
                return


def _decoded(value: bytes, kind: type[T], key: str) -> T:
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unavailable(f"etcd's {TRUST}/{key} cannot be read: {error}", "did another version write it?") from error


def contended(what: str) -> Conflict:
    """Return the error for a change that others always overtook."""
    return Conflict(f"{what}: others changed the same at each of {TRIES} tries", "try again")
