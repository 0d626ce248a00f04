"""Remote names: the names of the endpoints on other live hosts, in the networks that matter here."""

from __future__ import annotations

from linkspan.cluster.remote_endpoints import RemoteEndpoints
from linkspan.core.model import Network
from linkspan.dns import zone
from linkspan.dns.zone import Named
from linkspan.store.contact import ALIVE
from linkspan.store.replica import ENDPOINTS, Replica


class Elsewhere:
    """Makes the files of the other hosts' names. After a change only the lines of its host are made again."""

    def __init__(self, replica: Replica, remote: RemoteEndpoints, host: str) -> None:
        self._replica = replica
        self._remote = remote
        self._host = host
        self._parts: dict[str, dict[str, tuple[int, bytes]]] = {}
        """By network and host: the number of the change that the lines belong to, and the lines."""
        self._texts: dict[str, tuple[int, bytes]] = {}
        """By network: the number of the ``look`` that the file belongs to, and the whole file."""
        self._silent: frozenset[str] = frozenset()
        self._seen = -1
        self._number = 0

    def changed(self, keys: frozenset[str]) -> bool:
        """Return whether any of these keys matters."""
        return any(
            key.startswith(ALIVE) or (key.startswith(ENDPOINTS) and key.split("/")[1] != self._host) for key in keys
        )

    def look(self) -> int:
        """Look for changes, and return the look's number, which is higher after each change of names."""
        silent = self._silenced()
        if (self._remote.number, silent) != (self._seen, self._silent):
            self._seen, self._silent = self._remote.number, silent
            self._number += 1
        return self._number

    def text(self, network: Network) -> bytes | None:
        """Return the file of a network at the last ``look``; None while its endpoints are not known yet."""
        if not self._remote.whole(network.name):
            return None
        number, text = self._texts.get(network.name, (-1, b""))
        if number != self._number:
            text = self._joined(network)
            self._texts[network.name] = self._number, text
        return text

    def keep(self, networks: frozenset[str]) -> None:
        """Forget all networks but these."""
        for known in (self._parts, self._texts):
            for name in known.keys() - networks:
                del known[name]

    def _joined(self, network: Network) -> bytes:
        hosts, before = self._remote.hosts(network.name), self._parts.get(network.name, {})
        parts = self._parts[network.name] = {}
        for host in sorted(hosts):
            known = before.get(host)
            if known is None or known[0] != hosts[host]:
                known = hosts[host], zone.hosts(network, self._named(network.name, host))
            parts[host] = known
        return b"".join(lines for host, (_, lines) in parts.items() if host not in self._silent)

    def _named(self, network: str, host: str) -> list[Named]:
        endpoints = self._remote.of(network, host).values()
        return [Named(tuple(one.addresses.split()), tuple(one.names.split())) for one in endpoints]

    def _silenced(self) -> frozenset[str]:
        """Return the ids of dead hosts with endpoints; none while the store is full."""
        if self._replica.absences.full:
            return frozenset()
        return frozenset(host for host in self._remote.wanted if ALIVE + host not in self._replica.records)
