"""Exact records: the records of exact addresses as values, by network, and there by host and by identity.

A network with exact addresses has a record for each container of the cluster. So a change costs the records that
changed, and a question costs what it returns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Invalid
from linkspan.store.record_cache import RecordCache
from linkspan.store.records import AddressRecord


class InNetwork:
    """The records of one network's exact addresses. Callers must not change the mappings."""

    def __init__(self) -> None:
        self.all: dict[Prefix, AddressRecord] = {}
        self._hosts: dict[str, dict[Prefix, AddressRecord]] = {}
        """By the id of the host that has the address; '' has those that were released and have an identity."""
        self.free: dict[int, dict[Prefix, AddressRecord]] = {}
        """By family: those that were released and have no identity, nearly in the order of their release."""
        self._identities: dict[str, dict[Prefix, AddressRecord]] = {}

    def put(self, address: Prefix, record: AddressRecord | None) -> None:
        """Adopt the present record of an address, None if there is none."""
        self._drop(address)
        if record is None:
            return
        self.all[address] = record
        self._group(address, record)[address] = record
        if record.identity:
            self._identities.setdefault(record.identity, {})[address] = record

    def of_host(self, host: str) -> Mapping[Prefix, AddressRecord]:
        """Return the addresses that a host has."""
        return self._hosts.get(host, {})

    def of_identity(self, identity: str, family: int) -> Prefix | None:
        """Return the address that an identity got last, None if it never had one."""
        found = [(r.at, a) for a, r in self._identities.get(identity, {}).items() if a.family == family]
        return max(found)[1] if found else None

    def _drop(self, address: Prefix) -> None:
        if (old := self.all.pop(address, None)) is not None:
            del self._group(address, old)[address]
            if old.identity:
                del self._identities[old.identity][address]
                if not self._identities[old.identity]:
                    del self._identities[old.identity]

    def _group(self, address: Prefix, record: AddressRecord) -> dict[Prefix, AddressRecord]:
        if record.host or record.identity:
            return self._hosts.setdefault(record.host, {})
        return self.free.setdefault(address.family, {})


class ExactRecords:
    """Follows the records of exact addresses, of each network from the first question about it on."""

    def __init__(self, cache: RecordCache) -> None:
        self._cache = cache
        self._networks: dict[str, tuple[set[str], InNetwork]] = {}
        """By name: the keys of records that changed, and the network's records before."""

    def of(self, network: str) -> InNetwork:
        """Return a network's records as they are now."""
        if (known := self._networks.get(network)) is None:
            known = self._networks[network] = self._cache.follow("addresses", network), InNetwork()
        due, there = known
        while due:
            key = due.pop()
            record = self._cache.value(key, AddressRecord)
            with contextlib.suppress(Invalid):  # a key that is no address: `value` has noted that
                address = prefix(text := key.rpartition("/")[2]).single()
                if address.address == text:
                    there.put(address, record)
        return there
