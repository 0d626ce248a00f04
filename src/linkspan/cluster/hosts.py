"""Hosts of the cluster: their records, their names, and which of them live, as this host's replica knows them."""

from __future__ import annotations

from collections.abc import Mapping, Set

import msgspec

from linkspan.cluster.own_record import OwnRecord
from linkspan.core.errors import Conflict
from linkspan.core.model import Host
from linkspan.store import records
from linkspan.store.contact import STALE
from linkspan.store.derived import Derived
from linkspan.store.records import ALIVE, EGRESS, GONE, claimant
from linkspan.store.replica import Replica

COME_BACK = "to bring it back as a new host: `linkspan uninstall` here, then start its agent again"
"""The fix for a host that was removed."""


class Hosts:
    """All hosts of the cluster, and this one among them."""

    def __init__(self, replica: Replica, own_record: OwnRecord, *, shared: bool = True) -> None:
        """``shared``: other hosts use the store too; otherwise it has no liveness records to trust."""
        self._replica = replica
        self._own_record = own_record
        self.shared = shared
        self._all = Derived(lambda: replica.changes("hosts"), self._read)
        self._ids = Derived(lambda: replica.changes("hosts"), lambda: _words(replica, "hosts/"))
        self._alive = Derived(lambda: replica.change_in("alive", None), lambda: _living(replica))

    @property
    def here(self) -> Host:
        """This host's record."""
        return self._own_record.host

    def all(self) -> Mapping[str, Host]:
        """Return all hosts by id."""
        return self._all.get()

    def _read(self) -> Mapping[str, Host]:
        return {host.id: host for host in self._replica.read("hosts/", Host).values()}

    def ids(self) -> Set[str]:
        """Return the ids of all hosts that have a record, readable or not."""
        return self._ids.get()

    def names(self) -> dict[str, str]:
        """Return the names of all hosts by their ids; several may have one name."""
        return {id_: host.name or id_ for id_, host in self.all().items()}

    def whole(self, host: Host) -> Host:
        """Return a host with its effective settings: those that all hosts share, overridden by its own."""
        common = self.common()
        return msgspec.structs.replace(host, settings={**common, **host.settings}) if common else host

    def common(self) -> dict[str, str]:
        """Return the settings that all hosts share."""
        found = self._replica.value(records.COMMON, records.Common)
        return found.settings if found is not None else {}

    def record(self, host: str) -> Host | None:
        """Return a host's record by its id, None if there is no readable one."""
        return self._replica.value(f"hosts/{host}", Host)

    def promised(self, host: str) -> float:
        """Return the seconds of silence after which a host gives up its addresses, by its record; 0: never."""
        known = self.record(host)
        return known.withdraws if known else 0

    def name(self, host: str) -> str:
        """Return a host's name by its id; the id if its name is not known."""
        known = self.record(host)
        return known.name if known else host

    def of_record(self, key: str) -> str:
        """Return the name of the host that a record belongs to, by its key or its owner; '' if there is none."""
        words = key.split("/")
        if words[0] in ("hosts", "endpoints") and len(words) > 1:
            return self.name(words[1])
        if words[0] == "leases" and len(words) == 3:
            return self.name(words[2])
        record = self._replica.records.get(key)
        owner = claimant(record.value) if words[0] in ("blocks", "addresses") and record is not None else ""
        return self.name(owner) if owner else ""

    def alive(self) -> Set[str]:
        """Return the ids of the hosts with a liveness record."""
        return self._alive.get()

    def lives(self, host: str) -> bool | None:
        """Return whether a host has a liveness record.

        None if that is unknown: the store does not answer, or is or just was full, so that a live host may have none.
        """
        if host == self.here.id:
            return True
        key, absences = ALIVE + host, self._replica.absences
        if self.shared and self._replica.contact.silence() > STALE:
            return None
        if key in self._replica.records:
            return None if key in absences and absences.unsure else True
        return None if absences.unsure else False

    def removed(self) -> bool:
        """Return whether somebody removed this host; it does not come back by itself."""
        return f"{GONE}hosts/{self.here.id}" in self._replica.records

    def gone(self) -> Conflict:
        """Return the error that this host was removed, with the way to bring it back."""
        return Conflict(f"host {self.here.name} was removed from the cluster", COME_BACK)


def _words(replica: Replica, prefix: str) -> Set[str]:
    return frozenset(key.removeprefix(prefix) for key in replica.keys_under(prefix))


def _living(replica: Replica) -> Set[str]:
    return frozenset(key.removeprefix(ALIVE) for key in replica.keys_under(ALIVE) if not key.startswith(EGRESS))
