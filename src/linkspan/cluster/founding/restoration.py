"""Restoration: a cluster of one voter from a snapshot, or from the data of a voter that lost the others.

**Beside, then exchanged.** etcd's tool makes a data folder beside the voter's own. An etcd that nobody else reaches
serves it, with authorities of its own that are thrown away. There the restored cluster is examined and corrected. Then
the voter's etcd stops, and the two folders are exchanged in one step. So at every moment the voter has data, the old or
the new, and whatever was killed can be repeated. The data that was there is renamed, and never deleted.

**A new etcd.** The restored cluster has another id in etcd, so members of the old one cannot join in. `etcd
--force-new-cluster` keeps the id: if the lost voters came back, each side would take the other's log for its own. So a
voter that lost the others makes a new cluster from its database, too. It has every record that this voter knew to be
confirmed.

**What hosts see.** The revision is raised, and what is before counts as compacted: every watch ends, and every host
lists the records. Missing ones are lost, not removed, and their owners put them back (store/replica.py). The record
``settings/restored`` says up to which revision the snapshot goes. By it hosts know tombstones that are older than their
records: the record was made again after the snapshot.

**What must not come back.** Hosts that departed after the snapshot are forgotten again, with their records
(``departed_hosts``). One that came back under its id must join again. The tokens of before let nobody in any more. The
voters of before are clients, whose users write their own records alone, until they are voters again. A rotation of
authorities that was under way at the snapshot ends: since then its new authorities may have been replaced, and this
host signs by the keys that it has. What hosts trust besides is dropped by the next rotation.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from pathlib import Path

import msgspec

from linkspan.cluster.founding import data_folder, snapshots
from linkspan.cluster.founding.authority_plan import ROTATION, RotationRecord
from linkspan.cluster.founding.authority_rotation import HINT, AuthoritiesHint, revoke_tokens
from linkspan.cluster.founding.departed_hosts import forget_again, revoked_serials
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.etcd_tools import Restorer
from linkspan.cluster.founding.foundation import found, make_authorities, make_server
from linkspan.cluster.founding.restored_data import HERE, RestoredData
from linkspan.cluster.founding.signer import HOSTS, JoinedHost
from linkspan.cluster.founding.store_move import MOVED, Moved, pending
from linkspan.cluster.founding.trust_files import RECORDS, RECORDS_PREFIX, TrustFiles, Voter
from linkspan.core.errors import Conflict, Invalid, LinkspanError
from linkspan.core.store_url import etcd_parts
from linkspan.store import records
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_wire import Range
from linkspan.store.factory import own_cluster
from linkspan.store.vault import Vault


class Restored(msgspec.Struct, frozen=True):
    """A cluster that was restored: its id, the store's URL for this host, and a token for hosts that join again.

    ``before`` is the folder of the data that was there, '' if there was none. ``again`` has the names by id of the
    known hosts that must join again: all, if they do not reach or trust this voter, else those that the snapshot does
    not know. ``departed`` has the names by id of those that the snapshot has, and that were forgotten again.
    """

    cluster: str
    url: str
    token: str
    before: str
    again: dict[str, str]
    departed: dict[str, str]


class Aim(msgspec.Struct, frozen=True):
    """The host to restore on: its part as a voter, its id and name.

    ``cluster`` is the id of the cluster to which it belongs ('': any), ``known`` the names by id of the hosts that it
    knows, ``gone`` the ids of those that it knows to be removed, and ``install`` makes etcd's unit and user if systemd
    runs etcd. ``url`` is its store's URL of before. New certificates are valid for ``life`` seconds.
    """

    files: TrustFiles
    service: EtcdService
    voter: Voter
    host: str
    name: str
    cluster: str
    known: Mapping[str, str]
    gone: frozenset[str]
    install: Callable[[], None]
    url: str
    life: float


async def restore(aim: Aim, snapshot: Path) -> Restored:
    """Make a cluster of one voter from a snapshot; meanwhile etcd goes on as it is. Raises LinkspanError."""
    restorer, trusted = Restorer(), _authority(aim)
    await asyncio.to_thread(snapshots.check, snapshot)
    async with _beside(aim) as data:
        await data.make(restorer, snapshot, f"https://{aim.voter.peers}", checked=True)
        cluster, joined, departed = await _corrected(aim, data, restorer.bump, end_rotation=True)
        await asyncio.to_thread(_prepare, aim)
        async with _replacing(aim.service):
            before = await data.swap()
        again = _again(aim, joined, departed, trusted)
        return await _completed(aim, data, Restored(cluster, "", "", before, again, departed))


async def recover(aim: Aim) -> Restored:
    """Make a cluster of one voter from its own data; etcd is stopped meanwhile. Raises LinkspanError."""
    restorer, trusted = Restorer(), _authority(aim)
    own = aim.service.data / data_folder.MEMBER / "snap" / "db"
    if not own.is_file():
        what = f"this voter has no data of its own: {own} does not exist"
        raise Invalid(what, "restore a snapshot: linkspan cluster restore FILE")
    async with _beside(aim) as data:
        async with _replacing(aim.service):
            await data.make(restorer, own, f"https://{aim.voter.peers}", checked=False)
            cluster, joined, departed = await _corrected(aim, data, restorer.bump, end_rotation=False)
            before = await data.swap()
        again = _again(aim, joined, departed, trusted)
        return await _completed(aim, data, Restored(cluster, "", "", before, again, departed))


@contextlib.asynccontextmanager
async def _beside(aim: Aim) -> AsyncIterator[RestoredData]:
    """Give the folder in which the data are restored. If anything fails, it goes: etcd needs the disk's space."""
    with contextlib.closing(RestoredData(aim.service, aim.host, aim.voter.clients)) as data:
        try:
            yield data
        except BaseException:
            with contextlib.suppress(LinkspanError):
                await data.discard()
            raise


def _prepare(aim: Aim) -> None:
    """Make what a voter needs besides its data; a voter has it, and keeps it."""
    make_authorities(aim.files, aim.service)
    aim.install()
    make_server(aim.files, aim.service, aim.voter, aim.life)


@contextlib.asynccontextmanager
async def _replacing(service: EtcdService) -> AsyncIterator[None]:
    """Let etcd be stopped in the block; if that fails, it runs again."""
    try:
        async with service.stopped():
            yield
    except BaseException:
        with contextlib.suppress(LinkspanError):
            await service.start()
        raise


async def _completed(aim: Aim, data: RestoredData, restored: Restored) -> Restored:
    """Start etcd with the restored data, let this host in, and make a token."""
    url, token = await found(aim.files, aim.service, aim.voter, aim.host, aim.name, aim.install, _as_is, aim.life)
    await data.discard()
    return msgspec.structs.replace(restored, url=url, token=token.text)


async def _as_is(_vault: Vault) -> None:
    """Leave the settings of voters as the snapshot has them."""


async def _corrected(
    aim: Aim, data: RestoredData, bump: int, *, end_rotation: bool
) -> tuple[str, dict[str, JoinedHost], dict[str, str]]:
    """Examine and correct the restored cluster; return its id, the hosts that it knows, and the departed ones' names.

    Raises LinkspanError.
    """
    root = await asyncio.to_thread(aim.files.secret, aim.files.root_password)
    async with data.serving(root.strip()) as vault:
        told = await vault.gateway.ask("/v3/kv/range", {"key": f"{RECORDS_PREFIX}.cluster".encode()}, Range)
        if not told.kvs:
            what = "this is a snapshot of no cluster that linkspan founded"
            raise Invalid(what, "give another file: nothing was changed")
        cluster = told.kvs[0].value.decode(errors="replace")
        if aim.cluster not in ("", cluster):
            raise Conflict(
                f"the snapshot is of cluster {cluster}, and this host belongs to {aim.cluster}",
                "give a snapshot of its own cluster; nothing was changed",
            )
        mark = records.encode(records.Restored(told.header.revision - bump, time.time()), b"", 1)
        put = {"key": f"{RECORDS_PREFIX}{records.RESTORED}".encode(), "value": mark}
        await vault.gateway.call("/v3/kv/put", put)
        # All hosts show their certificates then: the vault lacks the numbers of those that are younger than it.
        await vault.tell(HINT, AuthoritiesHint(f"restored/{time.time():.0f}"))
        revoked = await asyncio.to_thread(revoked_serials, aim.service.folder / "revoked.der")
        store = EtcdStore(data.files.root_url([HERE.clients], RECORDS))
        try:
            departed = await forget_again(vault, store, aim.host, revoked, aim.known, aim.gone)
        finally:
            await store.close()
        await revoke_tokens(vault)
        await vault.disband()
        if end_rotation:
            rotation, revision = await vault.get(ROTATION, RotationRecord)
            if rotation is not None:
                await vault.put({ROTATION: (None, revision)})
        if pending(aim.files.state_dir):  # it has no network, so there is nothing to move
            _, revision = await vault.get(MOVED, Moved)
            await vault.put({MOVED: (Moved(own_cluster(aim.files.state_dir)), revision)})
        return cluster, await vault.all(HOSTS, JoinedHost), departed


def _authority(aim: Aim) -> bytes:
    """Return the authority that hosts trust now, if this host can sign by it."""
    try:
        return aim.files.authority.read_bytes() if aim.files.authority_key.exists() else b""
    except OSError:
        return b""


def _again(aim: Aim, joined: Mapping[str, JoinedHost], departed: Collection[str], trusted: bytes) -> dict[str, str]:
    """Return the hosts that must join again, names by ids; none of those that departed."""
    inside = {id_: host.name for id_, host in joined.items() if not host.forgotten}
    followed = bool(trusted) and bool(aim.url) and aim.voter.clients in etcd_parts(aim.url).endpoints
    hosts = {id_: name for id_, name in {**aim.known, **inside}.items() if id_ not in {aim.host, *departed}}
    return {id_: name for id_, name in hosts.items() if not (followed and id_ in inside)}
