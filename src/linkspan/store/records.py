"""Records as bytes: their schema, and what a rewrite keeps of them.

A record has its schema (one without is of the first). Schemas only add fields, so an agent of schema N reads
what older ones wrote, and what N + 1 wrote: when it writes the record again, it keeps fields that it does not
know, at every depth. A still newer record may mean something else, and is skipped. Agents write the schema
that the whole cluster has agreed on (``ClusterSettings.writes``), which an operator raises once every host
supports the next one: so a newer host stops nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from linkspan import SCHEMA
from linkspan.core.addresses import Prefix
from linkspan.core.errors import Invalid

T = TypeVar("T")

SETTINGS = "settings/cluster"
COMMON = "settings/hosts"
"""The key of the settings that all hosts have."""
SHARED = "shared"
"""The owner of a block of which several hosts use single addresses."""


class ClusterSettings(msgspec.Struct, frozen=True):
    """Settings of the whole cluster: the schema to write, and ``reclaim_after`` in seconds (0: never)."""

    writes: int = 1
    reclaim_after: float = 0


class Common(msgspec.Struct, frozen=True):
    """The settings that all hosts have in common."""

    settings: dict[str, str] = {}


class BlockRecord(msgspec.Struct, frozen=True):
    """Owner of a block: a host's id, or SHARED; ``at`` is when it was claimed, in seconds since the epoch.

    ``over`` names the host whose claim was set aside by this one, and ``back`` tells that the store had lost
    it.
    """

    owner: str
    at: float
    back: bool = False
    over: str = ""


class AddressRecord(msgspec.Struct, frozen=True):
    """Owner of an exact address; an empty ``host`` means that it was released at ``at``, and is in cool-down.

    An identity outlasts the release: where its container comes again, on whatever host, it finds its address.
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
        """The container by its id, and whose it is where it is Docker's (whose interfaces begin so: `docker`)."""
        return f"Docker's endpoint {self.container[:12]}" if self.ifname.startswith("lsd") else self.container


class _Header(msgspec.Struct):
    schema: int = 1


def decode(value: bytes, type_: type[T]) -> T:
    """Return a record as a value. Raises Invalid, saying why, where it is garbage or of a schema too new for us."""
    schema = parse(value, _Header).schema
    if schema > SCHEMA + 1:
        raise Invalid(
            f"it has schema {schema}, and this linkspan reads up to {SCHEMA + 1}",
            "upgrade this host's linkspan",
        )
    found: T = parse(value, type_)
    return found


def parse(value: bytes, type_: Any) -> Any:
    """Return JSON of the store as a value of a type. Raises Invalid, saying why, where it is none."""
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
    """Return whose a block or address is by its record, '' where it is nobody's or garbage."""
    try:
        claim: _Claim = parse(value, _Claim)
    except Invalid:
        return ""
    return claim.owner or claim.host


def encode(value: msgspec.Struct, old: bytes, schema: int) -> bytes:
    """Return a value as a record of at most our own schema, with what only newer ones know of the ``old`` record."""
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
    """Return the record with the mark that the store had lost it; garbage as it is."""
    try:
        return msgspec.json.encode(parse(value, dict[str, Any]) | {"back": True})
    except Invalid:
        return value


def block_key(network: str, block: Prefix | str) -> str:
    """Return a block record's key."""
    return f"blocks/{network}/{block}"


def lease_key(network: str, host: str) -> str:
    """Return a lease record's key."""
    return f"leases/{network}/{host}"


def address_key(network: str, address: Prefix) -> str:
    """Return an exact address's key."""
    return f"addresses/{network}/{address.address}"


def _kept(value: object, fields: Any, before: Any) -> Any:
    """Return the fields, and those of ``before`` that the value's type does not know."""
    if not isinstance(before, dict):
        return fields
    if isinstance(value, msgspec.Struct):
        # By the names that they have in JSON: a value with camel case ones may be inside another.
        known = {field.encode_name: getattr(value, field.name) for field in msgspec.structs.fields(value)}
        kept = {name: _kept(one, fields[name], before.get(name)) for name, one in known.items()}
        return kept | {name: field for name, field in before.items() if name not in known}
    if isinstance(value, Mapping):
        return {name: _kept(one, fields[name], before.get(name)) for name, one in value.items()}
    return fields
