"""Withdrawal: this host gives up its networks across hosts when it has been silent for as long as it promised."""

from __future__ import annotations

import logging

from linkspan.cluster.hosts import Hosts
from linkspan.cluster.liveness import Liveness
from linkspan.cluster.peers import Peers
from linkspan.core.event_log import EventLog

log = logging.getLogger("linkspan.cluster.withdrawal")


class Withdrawal:
    """Withdraws this host while others may have reclaimed its addresses."""

    def __init__(self, hosts: Hosts, liveness: Liveness, peers: Peers, event_log: EventLog) -> None:
        self._hosts = hosts
        self._liveness = liveness
        self._peers = peers
        self._event_log = event_log

    def begin(self) -> None:
        """Set whether the first ``follow`` of peers removes their states: this host may have been silent before."""
        self._peers.withdraw(self._liveness.withdrawn(self._hosts.here.id))

    def look(self) -> bool:
        """Withdraw, or come back after contact; return whether that changed: all peers must be followed then."""
        host = self._hosts.here
        withdrawn = self._liveness.withdrawn(host.id)
        if withdrawn == self._peers.withdrawn:
            return False
        self._peers.withdraw(withdrawn)
        what = "withdraws from all networks that cross hosts" if withdrawn else "is back in its networks"
        text = f"host {host.name} {what}"
        log.warning("%s", text)
        self._event_log.add("lease", text)
        return True

    @property
    def problem(self) -> str:
        """Return what this host's silence means now, and why; '' if nothing."""
        if not (stalled := self._liveness.stalled(self._hosts.here.id)):
            return ""
        what = "it has withdrawn from its networks" if self._peers.withdrawn else "it gives no address"
        return f"{what}: {stalled}"
