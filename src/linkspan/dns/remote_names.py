"""Remote names: the names of the endpoints on other live hosts, in the networks that matter here."""

from __future__ import annotations

from linkspan.cluster.remote_endpoints import Packed, RemoteEndpoints
from linkspan.core.model import Network
from linkspan.dns import zone
from linkspan.dns.zone import Named
from linkspan.store.derived import Derived
from linkspan.store.records import ALIVE, EGRESS, ENDPOINTS
from linkspan.store.replica import Replica


class _File:
    """The file of a network: each host's lines, and all of them but those of ``silent`` hosts as ``text``.

    ``since`` is the number of the change since which the network matters, ``seen`` that of the last one in the file.
    """

    def __init__(self, network: Network, since: int) -> None:
        self.network = network
        self.since = self.seen = since
        self.lines: dict[str, bytes] = {}
        self.silent: frozenset[str] = frozenset()
        self.text = b""


class RemoteNames:
    """Makes the files of the other hosts' names. After a change only the lines of its host are made again."""

    def __init__(self, replica: Replica, remote: RemoteEndpoints, host: str) -> None:
        self._replica = replica
        self._remote = remote
        self._host = host
        self._files: dict[str, _File] = {}
        """By network."""
        self._silenced = Derived(
            lambda: (replica.absences.full, replica.change_in("alive", None), remote.wanted), self._find_silenced
        )
        self._silent: frozenset[str] = frozenset()
        self._seen = -1
        self._number = 0

    def changed(self, keys: frozenset[str]) -> bool:
        """Return whether any of these keys matters."""
        return any(
            (key.startswith(ALIVE) and not key.startswith(EGRESS))
            or (key.startswith(ENDPOINTS) and key.split("/")[1] != self._host)
            for key in keys
        )

    def look(self) -> int:
        """Look for changes, and return the look's number, which is higher after each change of names."""
        silent = self._silenced.get()
        if (self._remote.number, silent) != (self._seen, self._silent):
            self._seen, self._silent = self._remote.number, silent
            self._number += 1
        return self._number

    def text(self, network: Network) -> bytes | None:
        """Return the file of a network at the last ``look``; None while its endpoints are not known yet."""
        if not self._remote.whole(network.name):
            return None
        file, since = self._files.get(network.name), self._remote.matters(network.name)
        if file is None or file.network != network or file.since != since:  # its domains may have changed
            file = self._files[network.name] = _File(network, since)
        changed = self._remote.changed(network.name, file.seen)
        for host, endpoints in changed.items():
            if endpoints:
                file.lines[host] = zone.hosts(network, map(_named, endpoints.values()))
            else:
                file.lines.pop(host, None)
        file.seen = self._remote.number
        if changed or file.silent != self._silent:
            file.silent = self._silent
            file.text = b"".join([file.lines[host] for host in sorted(file.lines) if host not in self._silent])
        return file.text

    def keep(self, networks: frozenset[str]) -> None:
        """Forget all networks but these."""
        for name in self._files.keys() - networks:
            del self._files[name]

    def _find_silenced(self) -> frozenset[str]:
        """Return the ids of dead hosts with endpoints; none while the store is full."""
        if self._replica.absences.full:
            return frozenset()
        return frozenset(host for host in self._remote.wanted if ALIVE + host not in self._replica.records)


def _named(one: Packed) -> Named:
    return Named(tuple(one.addresses.split()), tuple(one.names.split()))
