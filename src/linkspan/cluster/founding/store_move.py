"""Move of a host's own store into the etcd that it founded: its networks, leases and addresses stay in force.

It happens at the start of the agent that has etcd as its store for the first time, while nobody else is in it. A move
that broke off is repeated, because the vault's key is written last.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import msgspec

from linkspan.cluster.founding.trust_files import RECORDS, RECORDS_PREFIX, TrustFiles, Voter
from linkspan.core.errors import Unavailable
from linkspan.core.remedies import reason, remedy
from linkspan.store.etcd import EtcdStore
from linkspan.store.factory import OWN, own_cluster
from linkspan.store.replica import EPHEMERAL
from linkspan.store.request import MOST_KEYS
from linkspan.store.snapshot import SNAPSHOT
from linkspan.store.sqlite import SqliteStore
from linkspan.store.vault import Vault

log = logging.getLogger("linkspan.cluster.founding.store_move")

MOVED = "moved"
"""The vault's key that says which cluster's records etcd has."""
KEPT = "store.moved"
"""The former store's folder in the state folder, for whoever wants to look."""


class Moved(msgspec.Struct, frozen=True):
    """The cluster whose records were moved."""

    cluster: str


async def move(files: TrustFiles, voter: Voter) -> int:
    """Move the own store into etcd if that was not done; return how many records were moved. Raises Unavailable."""
    cluster = own_cluster(files.state_dir)
    if not cluster:
        return 0
    vault = Vault(files.root_url([voter.clients]), RECORDS_PREFIX)
    try:
        moved, _ = await vault.get(MOVED, Moved)
        count = 0
        if moved is None:
            count = await _copied(files, voter, cluster)
            await vault.put({MOVED: (Moved(cluster), 0)})
        elif moved.cluster != cluster:
            raise Unavailable(
                f"this host's etcd has the records of cluster {moved.cluster}, and its own store those of {cluster}",
                f"move {files.state_dir / OWN} away, if nobody needs what is in it",
            )
    finally:
        await vault.close()
    _set_aside(files.state_dir)
    log.info("moved %d records of this host's own store into etcd", count)
    return count


async def _copied(files: TrustFiles, voter: Voter, cluster: str) -> int:
    """Copy the records of a store that nobody uses now."""
    source = SqliteStore(files.state_dir / OWN)
    target = EtcdStore(files.root_url([voter.clients], RECORDS), cluster)
    try:
        found, _ = await source.list("")
        lasting = [one for one in found if not one.key.startswith(EPHEMERAL)]
        for begin in range(0, len(lasting), MOST_KEYS):
            await target.transaction({one.key: one.value for one in lasting[begin : begin + MOST_KEYS]})
        if not lasting:
            await target.get("hosts/")  # gives the cluster its id
    finally:
        await source.close()
        await target.close()
    return len(lasting)


def _set_aside(state_dir: Path) -> None:
    """Drop the snapshot, whose revisions are the old store's, and rename the old store."""
    try:
        (state_dir / SNAPSHOT).unlink(missing_ok=True)
        shutil.rmtree(state_dir / KEPT, ignore_errors=True)
        (state_dir / OWN).rename(state_dir / KEPT)
    except OSError as error:
        hint = remedy(error, state_dir, "its files are the agent's")
        raise Unavailable(f"{state_dir}: the former store cannot be renamed: {reason(error)}", hint) from error
