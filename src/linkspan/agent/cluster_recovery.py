"""Cluster recovery, as a part of the agent: snapshots of linkspan's own etcd, and a new cluster that is made from one.

What a restore does with etcd's data is in `cluster/founding/restoration.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from linkspan.agent.etcd_unit import EtcdUnit
from linkspan.agent.own_cluster import OwnCluster
from linkspan.cluster.founding import member_list
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.snapshots import Keeper, Taken, take
from linkspan.cluster.founding.trust_files import Voter
from linkspan.core.errors import Conflict
from linkspan.core.model import Host
from linkspan.core.supervise import ended, lasting

if TYPE_CHECKING:
    from linkspan.cluster.founding.restoration import Restored

PATIENCE = 20.0
"""Seconds for the cluster's etcd to answer before it is restored."""


class ClusterRecovery:
    """Takes snapshots on a voter, and restores a cluster on this host."""

    def __init__(
        self,
        cluster: OwnCluster,
        unit: EtcdUnit,
        etcd: Callable[[str, Voter], AbstractContextManager[EtcdService]],
        renew: Callable[[], None],
    ) -> None:
        """``etcd`` gives this host's etcd as a voter, given its id; ``renew`` looks at its certificates soon."""
        self._cluster = cluster
        self._unit = unit
        self._etcd = etcd
        self._renew = renew
        self.keeper: Keeper | None = None
        """Who takes automatic snapshots while this host is a voter."""

    @contextlib.asynccontextmanager
    async def snapshots(self, host: str) -> AsyncIterator[None]:
        """Take a snapshot every twelve hours while this host is a voter."""
        if not self._cluster.own:
            yield
            return
        files = self._cluster.files
        self.keeper = Keeper(files.state_dir, host, self._cluster.voter, self._cluster.vault_here)
        task = lasting("taking snapshots", self.keeper.follow)
        try:
            yield
        finally:
            await ended(task)

    async def snapshot(self, file: Path) -> Taken:
        """Write a snapshot of etcd to a file. Raises Conflict if this host is no voter, and Unavailable."""
        async with self._cluster.vault_here(self._cluster.required("take a snapshot")) as vault:
            await vault.ready()  # without a quorum etcd would give what it had
            return await take(vault.gateway, file)

    async def restore(
        self, host: Host, snapshot: Path | None, known_cluster: str, known: Mapping[str, str], gone: frozenset[str]
    ) -> tuple[Restored, bool]:
        """Make a cluster of one voter, this host: from a snapshot, or (None) from its own data.

        Also return whether the agent restarts. ``known_cluster`` is the id of the cluster to which this host belongs
        ('': any), ``known`` has the names of the known hosts by their ids, and ``gone`` the ids of removed ones. What
        broke off can be repeated. Raises LinkspanError.
        """
        cluster = self._cluster
        async with cluster.turn:
            cluster.refuse_foreign("restore an etcd of your own with etcdutl")
            await self._refuse_living(host.id, known, recovers=snapshot is None)
            voter = cluster.required("recover") if snapshot is None else cluster.chosen(host, "")
            from linkspan.cluster.founding import restoration  # cryptography: 10 MB

            with self._etcd(host.id, voter) as service:
                aim = restoration.Aim(
                    cluster.files,
                    service,
                    voter,
                    host.id,
                    host.name,
                    known_cluster,
                    known,
                    gone,
                    partial(self._unit.install, voter, service),
                    cluster.config.store,
                    cluster.config.certificate_life,
                )
                made = await (restoration.recover(aim) if snapshot is None else restoration.restore(aim, snapshot))
            self._renew()
            return made, cluster.use(made.url)

    async def _refuse_living(self, host: str, known: Mapping[str, str], *, recovers: bool) -> None:
        """Raise Conflict if the cluster's etcd answers, and would go on beside the restored one."""
        if not self._cluster.own:
            return
        answering = await member_list.answering(self._cluster.config.store, PATIENCE)
        ids = [*map(member_list.host_of, answering)]
        if not ids:
            return
        if recovers:
            raise Conflict("the cluster's etcd answers, so its quorum is not lost", "linkspan cluster members")
        if ids != [host]:
            names = ", ".join(sorted(known.get(one, one) for one in ids))
            raise Conflict(
                f"the cluster's etcd answers, on {names}: it would go on beside the restored one",
                "restore on its voter; if there are several, demote the others first (linkspan cluster members)",
            )
