"""Messages of etcd's JSON gateway (etcd's api/etcdserverpb/rpc.proto, in JSON).

Bytes are base64, 64-bit numbers are strings, and default values are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from linkspan.core.errors import Unavailable
from linkspan.core.store_contract import Record

T = TypeVar("T")
Json = dict[str, Any]

MEMBERS_OWN = ("127.", "[::1]:", "localhost:", "0.0.0.0:", "[::]:")
"""Beginnings of advertised addresses that mean the member's own machine: here they would mean this host."""


class Header(msgspec.Struct, frozen=True):
    """Header of each answer: the store's revision, the etcd cluster's id, and raft's term."""

    cluster_id: str = ""
    revision: int = 0
    raft_term: int = 0


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """A record as etcd has it."""

    key: bytes
    value: bytes = b""
    mod_revision: int = 0


class Range(msgspec.Struct, frozen=True):
    """Records of a range; ``more`` if there are further ones."""

    header: Header = Header()
    kvs: tuple[KeyValue, ...] = ()
    more: bool = False


class Done(msgspec.Struct, frozen=True):
    """Result of one operation of a transaction."""

    response_range: Range | None = None


class Txn(msgspec.Struct, frozen=True):
    """Result of a transaction."""

    header: Header = Header()
    succeeded: bool = False
    responses: tuple[Done, ...] = ()

    def range(self, number: int) -> Range:
        """Return the result of the operation with this number (from 0), which must be a range."""
        return self.responses[number].response_range or Range()


class Refusal(msgspec.Struct, frozen=True):
    """An error; ``code`` is gRPC's."""

    code: int = 2
    message: str = ""


class StreamError(msgspec.Struct, frozen=True):
    """An error of a stream: in a line of its answer, or instead of the answer."""

    code: int = msgspec.field(default=2, name="grpc_code")
    message: str = ""


class StreamRefusal(msgspec.Struct, frozen=True):
    """The answer of a stream that did not begin."""

    error: StreamError


class Grant(msgspec.Struct, frozen=True):
    """An etcd lease that keys are tied to, and its time to live in seconds; 0: the lease does not exist."""

    ID: str
    TTL: int = 0


class Kept(msgspec.Struct, frozen=True):
    """One line of the answer to keepalives."""

    result: Grant | None = None
    error: StreamError | None = None


class Status(msgspec.Struct, frozen=True):
    """Status of a member; ``errors`` contains the cluster's alarms."""

    errors: tuple[str, ...] = ()


class Member(msgspec.Struct, frozen=True):
    """A member of an etcd cluster: its id, its name ('' before it has started), and the URLs that it advertises."""

    id: str = msgspec.field(default="", name="ID")
    name: str = ""
    peers: tuple[str, ...] = msgspec.field(default=(), name="peerURLs")
    clients: tuple[str, ...] = msgspec.field(default=(), name="clientURLs")
    learner: bool = msgspec.field(default=False, name="isLearner")


class Members(msgspec.Struct, frozen=True):
    """The members of an etcd cluster."""

    members: tuple[Member, ...] = ()


class Token(msgspec.Struct, frozen=True):
    """Proof of the user's identity, valid for some minutes."""

    token: str = ""


class Event(msgspec.Struct, frozen=True, gc=False):
    """A change of one key: PUT or DELETE."""

    kv: KeyValue
    type: str = "PUT"


class Watch(msgspec.Struct, frozen=True):
    """One message of a watch; ``fragment``: the next one continues it, perhaps in the middle of a revision."""

    header: Header = Header()
    watch_id: int = 0
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    fragment: bool = False
    events: tuple[Event, ...] = ()


class WatchLine(msgspec.Struct, frozen=True):
    """One line of a watch's answer."""

    result: Watch | None = None
    error: StreamError | None = None


def decode(text: bytes, kind: type[T]) -> T:
    """Return an answer as a value of type ``kind``. Raises Unavailable if etcd cannot have sent it."""
    try:
        return msgspec.json.decode(text, type=kind, strict=False)
    except msgspec.DecodeError as error:
        raise Unavailable(f"store etcd: an answer is not understood: {error}", "is that etcd v3?") from error


def refusal_of(answer: bytes) -> Refusal:
    """Return the error in the answer of a call or a stream. Raises Unavailable if etcd cannot have sent it."""
    try:
        found = msgspec.json.decode(answer, type=StreamRefusal, strict=False).error
    except msgspec.DecodeError:
        return decode(answer, Refusal)
    return Refusal(found.code, found.message)


def prefix_range(key: str) -> Json:
    """Return the range of the keys that begin with ``key``: its end is the next string of the same length."""
    begin = key.encode()
    return {"key": begin, "range_end": begin[:-1] + bytes([begin[-1] + 1])}


def after(keys: Json, page: Range) -> Json:
    """Return the rest of a range of keys after an answer with the first of them."""
    return {**keys, "key": page.kvs[-1].key + b"\0"} if page.kvs else keys


def ranges_beside(keys: Json, inner: Json) -> list[Json]:
    """Return a range of keys without those of another one, which lies in it."""
    return [{**keys, "range_end": inner["key"]}, {**keys, "key": inner["range_end"]}]


def has_value(key: str, value: str) -> Json:
    """Return the condition that a key has a value."""
    return {"key": key.encode(), "target": "VALUE", "result": "EQUAL", "value": value.encode()}


def has_revision(key: str, revision: int) -> Json:
    """Return the condition that a key was last changed at ``revision``; 0: that it does not exist."""
    return {"key": key.encode(), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def lease_of(seconds: float) -> Json:
    """Return the request for an etcd lease of at least ``seconds``; etcd counts in whole seconds."""
    return {"TTL": str(math.ceil(seconds))}


def range_of(key: str) -> Json:
    """Return the operation that reads one key."""
    return {"request_range": {"key": key.encode()}}


def range_at(key: bytes, revision: int) -> Json:
    """Return the operation that reads one key as it was at a revision."""
    return {"request_range": {"key": key, "revision": str(revision)}}


def puts_and_deletes(puts: Mapping[str, bytes], deletes: Sequence[str], lease: str) -> list[Json]:
    """Return a transaction's puts, tied to the etcd lease with the id ``lease`` ('': to none), and its deletes."""
    tied = {"lease": lease} if lease else {}
    operations = [{"request_put": {"key": key.encode(), "value": value, **tied}} for key, value in puts.items()]
    return operations + [{"request_delete_range": {"key": key.encode()}} for key in deletes]


def record_of(found: KeyValue, prefix: str) -> Record:
    """Return a record of the store under ``prefix``. The replica skips a key that is not UTF-8, and names it."""
    return Record(found.key.decode(errors="replace").removeprefix(prefix), found.value, found.mod_revision)
