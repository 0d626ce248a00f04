"""Move of a host's own store into the etcd that it founded: its networks, leases and addresses stay in force.

It happens at the start of the agent that has etcd as its store for the first time, while nobody else is in it. A move
that broke off is repeated, because the vault's key is written last.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from linkspan.cluster.founding.trust_files import RECORDS, RECORDS_PREFIX, TrustFiles, Voter
from linkspan.core.errors import Unavailable
from linkspan.core.remedies import reason, remedy
from linkspan.core.store_contract import Record
from linkspan.store.etcd import EtcdStore
from linkspan.store.factory import OWN, own_cluster
from linkspan.store.records import EPHEMERAL
from linkspan.store.request import MOST_BYTES, MOST_KEYS
from linkspan.store.snapshot import SNAPSHOT
from linkspan.store.sqlite import FILE, SqliteStore
from linkspan.store.vault import Vault

log = logging.getLogger("linkspan.cluster.founding.store_move")

MOVED = "moved"
"""The vault's key that says which cluster's records etcd has."""
KEPT = "store.moved"
"""The former store's folder in the state folder, for whoever wants to look."""


class Moved(msgspec.Struct, frozen=True):
    """The cluster whose records were moved."""

    cluster: str


def pending(state_dir: Path) -> bool:
    """Return whether this host has a store of its own that was not moved."""
    return (state_dir / OWN / FILE).exists()


async def move(files: TrustFiles, voter: Voter) -> int:
    """Move the own store into etcd if that was not done; return how many records were moved.

    Raises LinkspanError, also if the store cannot be read: etcd without its records would be another cluster.
    """
    if not pending(files.state_dir):
        return 0
    cluster = own_cluster(files.state_dir)
    if not cluster:
        file = files.state_dir / OWN / FILE
        raise Unavailable(
            f"this host's own store, {file}, cannot be read, and its records are not in etcd yet",
            "end what else has the file open, or restore it from a backup; to go on without its records, stop the "
            "agent and move the file away",
        )
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
        there, _ = await target.list("")  # of a move that broke off; the first call gives the cluster its id
        known = {one.key for one in there}
        for batch in batches(one for one in lasting if one.key not in known):
            if not await target.transaction(batch, absent=[*batch]):
                raise Unavailable("somebody else writes into this host's etcd, while its records are moved into it")
    finally:
        await source.close()
        await target.close()
    return len(lasting)


def batches(records: Iterable[Record]) -> Iterator[dict[str, bytes]]:
    """Yield the values of records by key, as many as one transaction takes."""
    batch: dict[str, bytes] = {}
    size = 0
    for one in records:
        more = len(one.key.encode()) + len(one.value)
        if batch and (len(batch) == MOST_KEYS or size + more > MOST_BYTES):
            yield batch
            batch, size = {}, 0
        batch[one.key] = one.value
        size += more
    if batch:
        yield batch


def _set_aside(state_dir: Path) -> None:
    """Drop the snapshot, whose revisions are the old store's, and rename the old store."""
    try:
        (state_dir / SNAPSHOT).unlink(missing_ok=True)
        shutil.rmtree(state_dir / KEPT, ignore_errors=True)
        (state_dir / OWN).rename(state_dir / KEPT)
    except OSError as error:
        hint = remedy(error, state_dir, "its files are the agent's")
        raise Unavailable(f"{state_dir}: the former store cannot be renamed: {reason(error)}", hint) from error
