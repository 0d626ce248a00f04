"""Remote names: the names of the endpoints on other live hosts, in the networks that matter here."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping

from linkspan.cluster.remote_endpoints import Packed, RemoteEndpoints
from linkspan.core.model import Network
from linkspan.dns import zone
from linkspan.dns.zone import Named
from linkspan.store.derived import Derived
from linkspan.store.records import ALIVE, EGRESS, ENDPOINTS
from linkspan.store.replica import Replica


class _File:
    """The file of a network: the lines of all hosts but the ``silent`` ones as ``text``, and how long each host's are.

    ``since`` is the number of the change since which the network matters, ``seen`` that of the last one in the file.
    """

    def __init__(self, network: Network, since: int) -> None:
        self.network = network
        self.since = self.seen = since
        self.silent: frozenset[str] = frozenset()
        self.text = b""
        self._hosts: list[str] = []
        self._lengths: list[int] = []
        """Of each host's lines, in the order of the hosts and of their lines."""

    def replace(self, lines: Mapping[str, bytes]) -> None:
        """Replace the lines of some hosts; a host with none has no place in the file."""
        starts = [0, *itertools.accumulate(self._lengths)]
        end, parts = len(self.text), list[bytes]()
        for host in sorted(lines, reverse=True):  # from the end on: the places before it stay as they are
            at = bisect.bisect_left(self._hosts, host)
            after = at + (self._hosts[at : at + 1] == [host])
            parts += [self.text[starts[after] : end], lines[host]]
            end, some = starts[at], bool(lines[host])
            self._hosts[at:after] = [host] * some
            self._lengths[at:after] = [len(lines[host])] * some
        self.text = b"".join([self.text[:end], *reversed(parts)])


class RemoteNames:
    """Makes the files of the other hosts' names. After a change only the lines of its host are made again."""

    def __init__(self, replica: Replica, remote: RemoteEndpoints, host: str) -> None:
        self._replica = replica
        self._remote = remote
        self._host = host
        self._files: dict[str, _File] = {}
        """By network."""
        self._silenced = Derived(
            lambda: (replica.absences.unsure, replica.change_in("alive", None), remote.wanted), self._find_silenced
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
        changed: dict[str, Mapping[str, Packed]] = {
            **{host: self._remote.of(network.name, host) for host in file.silent ^ self._silent},
            **self._remote.changed(network.name, file.seen),
        }
        file.seen, file.silent = self._remote.number, self._silent
        if changed:
            made = {
                host: zone.hosts(network, map(_named, endpoints.values()))
                for host, endpoints in changed.items()
                if endpoints and host not in self._silent
            }
            file.replace({**dict.fromkeys(changed, b""), **made})
        return file.text

    def keep(self, networks: frozenset[str]) -> None:
        """Forget all networks but these."""
        for name in self._files.keys() - networks:
            del self._files[name]

    def _find_silenced(self) -> frozenset[str]:
        """Return the ids of dead hosts with endpoints; none while the store is full, or just was."""
        if self._replica.absences.unsure:
            return frozenset()
        return frozenset(host for host in self._remote.wanted if ALIVE + host not in self._replica.records)


def _named(one: Packed) -> Named:
    return Named(tuple(one.addresses.split()), tuple(one.names.split()))
