"""Remote names: the names of the endpoints on other live hosts."""

from __future__ import annotations

import logging

import msgspec

from linkspan.core.model import Endpoint
from linkspan.dns import zone
from linkspan.dns.zone import Named
from linkspan.store.contact import ALIVE
from linkspan.store.replica import ENDPOINTS, Replica

log = logging.getLogger("linkspan.dns.remote_names")


class _Known(msgspec.Struct, frozen=True):
    host: str
    network: str
    named: Named


class Elsewhere:
    """Follows the endpoint records of the other hosts; decodes each once for each change."""

    def __init__(self, replica: Replica, host: str) -> None:
        self._replica = replica
        self._host = host
        self._known: dict[str, _Known] = {}
        self._due: set[str] = set()
        self._hosts: set[str] = set()
        self._silenced: set[str] = set()
        self._number = 0
        self.named: dict[str, list[Named]] = {}
        """By network: the named endpoints on the other live hosts, at the last ``look``."""

    def everything(self) -> None:
        """Make the next ``look`` read all records."""
        self._due |= self._replica.under(ENDPOINTS).keys()

    def changed(self, keys: frozenset[str]) -> bool:
        """Record changed keys; return whether any of them matters."""
        due = {key for key in keys if key.startswith(ENDPOINTS) and key.split("/")[1] != self._host}
        self._due |= due
        return bool(due) or any(key.startswith(ALIVE) for key in keys)

    def look(self) -> int:
        """Bring ``named`` up to date, and return its number, which is higher after each change."""
        read, silent = self._read(), self._silent()
        if read or silent != self._silenced:
            self._number += 1
            self._silenced, self.named = silent, {}
            for known in self._known.values():
                if known.host not in silent:
                    self.named.setdefault(known.network, []).append(known.named)
        return self._number

    def _read(self) -> bool:
        """Read the changed records, and return whether there were any; an unreadable one keeps its earlier value."""
        due, self._due = self._due, set()
        for key in due:
            host = key.split("/")[1]
            record = self._replica.records.get(key)
            if record is None or host == self._host:
                self._known.pop(key, None)
                continue
            endpoint = self._replica.value(key, Endpoint)
            if endpoint is not None:  # otherwise its names stay
                self._known[key] = _Known(host, endpoint.network, zone.named(endpoint))
        if due:
            self._hosts = {known.host for known in self._known.values()}
        return bool(due)

    def _silent(self) -> set[str]:
        """Return the ids of dead hosts with endpoints; none while the store is full."""
        if self._replica.absences.full:
            return set()
        return {host for host in self._hosts if ALIVE + host not in self._replica.records}
