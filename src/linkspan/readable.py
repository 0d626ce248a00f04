"""Records that are well formed and still mean nothing here: of a backend that only a newer linkspan has, say."""

from __future__ import annotations

from typing import TypeVar

from linkspan import migration, records
from linkspan.addresses import prefix
from linkspan.backends import backend
from linkspan.errors import Invalid
from linkspan.model import Endpoint, Host, Lease, Network, Reservation

T = TypeVar("T")


def decode(raw: bytes, type_: type[T]) -> T:
    """Return a record as a value. Raises Invalid where it cannot be read, or means nothing here."""
    found = records.decode(raw, type_)
    _check(found)
    return found


def _check(value: object) -> None:
    """Raise Invalid where a record's backends or addresses are none: one such record must stop no other."""
    texts: tuple[str, ...] = ()
    match value:
        case Network():
            for way in migration.ways(value):
                backend(way.backend)
            if len(value.gateways) != len(value.pools):
                raise Invalid(f"network {value.name} has not one gateway for each pool")
            texts = (*value.pools, *value.gateways)
        case Reservation():
            texts = (value.cidr,)
        case Endpoint():
            texts = (*value.addresses, *value.gateways)
        case Lease():
            texts = (*value.prefixes, *value.addresses)
        case Host() if value.underlay is not None:
            texts = (*value.underlay.addresses, *value.underlay.advertise)
    for text in texts:
        prefix(text)
