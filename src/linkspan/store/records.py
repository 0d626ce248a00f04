"""Records as bytes: their schema, and the fields that a rewrite keeps.

A record names its schema (1 if it names none). Schemas only add fields. So an agent of schema N reads what older agents
and agents of schema N + 1 wrote. When it writes the record again, it keeps the fields that it does not know, at every
depth. A record of a still newer schema may mean something else, and is skipped. All agents write the cluster's schema
(``ClusterSettings.writes``). An operator raises it once every host supports the next one, so a host that is upgraded
first writes nothing that others cannot read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from linkspan import SCHEMA
from linkspan.core.addresses import Prefix
from linkspan.core.errors import Invalid

T = TypeVar("T")

ALIVE = "alive/"
"""Prefix of the liveness records (`cluster/presence.py`)."""
EGRESS = f"{ALIVE}(egress)/"
"""Prefix of the records of who holds an egress address (`cluster/egress.py`). No host has such an id.

Any host may write them, for networks that do not exist, too.
"""
GONE = "gone/"
"""Prefix of the tombstones: the key of the removed record follows."""
ENDPOINTS = "endpoints/"
EPHEMERAL = (ALIVE, "ask/", "answer/", "upkeep/", ENDPOINTS)
"""Records that are never lost: they end by themselves, or their host writes them again anyway."""
CLAIMS = ("blocks/", "addresses/")
"""Records that only one host may own. After a loss the owner puts its claim back with the mark ``back``."""
SETTINGS = "settings/cluster"
COMMON = "settings/hosts"
"""The key of the settings that all hosts share."""
RESTORED = "settings/restored"
"""The key of the record that says from which moment the store was restored."""
SHARED = "shared"
"""The owner of a block that several hosts take single addresses from."""


class ClusterSettings(msgspec.Struct, frozen=True):
    """Settings of the whole cluster: the schema to write, and ``reclaim_after`` in seconds (0: never)."""

    writes: int = 1
    reclaim_after: float = 0


class Common(msgspec.Struct, frozen=True):
    """The settings that all hosts share, by name."""

    settings: dict[str, str] = {}


class Tombstone(msgspec.Struct, frozen=True):
    """The host that removed a record, and the time (seconds since the epoch)."""

    by: str
    at: float


class Restored(msgspec.Struct, frozen=True):
    """The restore of the store: the last revision of its snapshot, and when it was done (seconds since the epoch)."""

    revision: int
    at: float


class BlockRecord(msgspec.Struct, frozen=True, gc=False):
    """Owner of a block: a host's id, or SHARED; ``at`` is when it was claimed, in seconds since the epoch.

    ``over`` is the id of the host whose claim this one replaced. ``back``: the store had lost the record, and its owner
    put it back.
    """

    owner: str
    at: float
    back: bool = False
    over: str = ""


class AddressRecord(msgspec.Struct, frozen=True, gc=False):
    """Owner of an exact address; if ``host`` is '', it was released at ``at`` (seconds since the epoch) and cools down.

    ``identity`` stays after the release: a container with this identity gets the address again on any host. ``over``
    and ``back`` are as in ``BlockRecord``.
    """

    host: str
    container: str
    ifname: str
    at: float
    identity: str = ""
    back: bool = False
    over: str = ""

    @property
    def called(self) -> str:
        """The container's id; if Docker's plugin attached it (interfaces named ``lsd...``), Docker's endpoint id."""
        return f"Docker's endpoint {self.container[:12]}" if self.ifname.startswith("lsd") else self.container


class _Header(msgspec.Struct):
    schema: int = 1


_READ = tuple(b'{"schema":%d,' % schema for schema in range(1, SCHEMA + 2))
"""The first bytes of a record that ``encode`` wrote in a schema that is read. There may be 100,000 such records."""


def decode(value: bytes, type_: type[T]) -> T:
    """Return a record as a value. Raises Invalid, with the reason, if it cannot be read or its schema is too new."""
    schema = 1 if value.startswith(_READ) else parse(value, _Header).schema
    if schema > SCHEMA + 1:
        raise Invalid(
            f"it has schema {schema}, and this linkspan reads up to {SCHEMA + 1}",
            "upgrade this host's linkspan",
        )
    found: T = parse(value, type_)
    return found


def parse(value: bytes, type_: Any) -> Any:
    """Return JSON from the store as a value of ``type_``. Raises Invalid, with the reason."""
    try:
        return msgspec.json.decode(value, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(str(error)) from error
    except RecursionError as error:
        raise Invalid("its JSON is nested too deep") from error


class _Claim(msgspec.Struct):
    owner: str = ""
    host: str = ""


def claimant(value: bytes) -> str:
    """Return the owner of a block or address by its record: a host's id, SHARED, or '' (none, or unreadable)."""
    try:
        claim: _Claim = parse(value, _Claim)
    except Invalid:
        return ""
    return claim.owner or claim.host


def encode(value: msgspec.Struct, old: bytes, schema: int) -> bytes:
    """Return a value as a record, with the fields of the ``old`` record that only newer agents know.

    Its schema is ``schema``, but at most SCHEMA and at least that of the old record.
    """
    fields: dict[str, Any] = msgspec.to_builtins(value)
    schema = min(schema, SCHEMA)
    if old:
        try:
            before = parse(old, dict[str, Any])
            schema = max(schema, parse(old, _Header).schema)
        except Invalid:
            before = {}
        before.pop("schema", None)
        fields = _kept(value, fields, before)
    return msgspec.json.encode({"schema": schema, **fields})


def well_formed(value: bytes) -> bool:
    """Return whether a record is JSON at all."""
    try:
        parse(value, Any)
    except Invalid:
        return False
    return True


def put_back(value: bytes) -> bytes:
    """Return the record with ``back`` set: the store had lost it. An unreadable one is returned as it is."""
    try:
        return msgspec.json.encode(parse(value, dict[str, Any]) | {"back": True})
    except Invalid:
        return value


def block_key(network: str, block: Prefix | str) -> str:
    """Return the key of a block's record."""
    return f"blocks/{network}/{block}"


def lease_key(network: str, host: str) -> str:
    """Return the key of a host's lease in a network."""
    return f"leases/{network}/{host}"


def address_key(network: str, address: Prefix) -> str:
    """Return the key of an exact address's record."""
    return f"addresses/{network}/{address.address}"


def _kept(value: object, fields: Any, before: Any) -> Any:
    """Return ``fields``, and those of ``before`` that the value's type does not know, at every depth."""
    if not isinstance(before, dict):
        return fields
    if isinstance(value, msgspec.Struct):
        # By their names in JSON: a value inside another one may have names in camel case.
        # Not by `msgspec.structs.fields`, which evaluates the types of all fields: that takes a millisecond.
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        known = {encoded: getattr(value, name) for encoded, name in names}
        kept = {name: _kept(one, fields[name], before.get(name)) for name, one in known.items()}
        return kept | {name: field for name, field in before.items() if name not in known}
    if isinstance(value, Mapping):
        return {name: _kept(one, fields[name], before.get(name)) for name, one in value.items()}
    return fields
