"""Departed hosts: they were forgotten or removed after a snapshot was taken, and a restore must not bring them back.

The snapshot has their users, their certificates and their records. Two sources say that they are gone: this voter's
list of revoked certificates, and the tombstones of hosts that this host's agent knows.

A host may have come back under its id, with another key. Its certificates in the snapshot are revoked, but the agent
knows its record. It lost its user and must join again, and it keeps its records: its containers run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from pathlib import Path

from linkspan.cluster.founding import certificates, exclusion
from linkspan.cluster.founding.signer import HOSTS, REVOKED, JoinedHost, Revoked
from linkspan.core.errors import LinkspanError
from linkspan.core.store_contract import Store
from linkspan.store import records
from linkspan.store.records import ALIVE, CLAIMS, ENDPOINTS, GONE, Tombstone, claimant
from linkspan.store.request import MOST_KEYS
from linkspan.store.vault import Vault

log = logging.getLogger("linkspan.cluster.founding.departed_hosts")


async def forget_again(
    vault: Vault, store: Store, here: str, revoked: Collection[int], known: Collection[str], gone: Collection[str]
) -> dict[str, str]:
    """Forget the hosts that departed after the snapshot; return their names by id. Raises LinkspanError.

    ``vault`` and ``store`` are those of the restored data, and ``here`` is this host's id. ``revoked`` has the serial
    numbers of revoked certificates, ``known`` the ids of the hosts that have records now, and ``gone`` those of removed
    hosts. A host that came back is shut out like the others, and is not returned.
    """
    joined = await vault.all(HOSTS, JoinedHost)
    kept = {one.key.removeprefix("hosts/") for one in (await store.list("hosts/"))[0]}
    outside = {
        id_: joined[id_].name if id_ in joined else id_
        for id_ in ({*joined} | kept) - {here}
        if (id_ in gone and (id_ in kept or not joined[id_].forgotten)) or _is_revoked(joined.get(id_), revoked)
    }
    for id_ in outside:
        await exclusion.shut_out(vault, id_, known=True)
    listed = await vault.all(REVOKED, Revoked)
    for serial in sorted(f"{one:x}" for one in revoked if f"{one:x}" not in listed):
        await vault.put({REVOKED + serial: (Revoked("", time.time()), 0)})
    departed = {id_: name for id_, name in outside.items() if id_ in gone or id_ not in known}
    await _remove_records(store, here, departed)
    return departed


def revoked_serials(file: Path) -> set[int]:
    """Return the serial numbers in etcd's list of revoked certificates, none if it is missing or damaged."""
    try:
        return certificates.listed(file.read_bytes())
    except FileNotFoundError:
        return set()
    except (OSError, LinkspanError) as error:
        log.warning("hosts that were forgotten after the snapshot may come back: %s", error)
        return set()


def _is_revoked(host: JoinedHost | None, revoked: Collection[int]) -> bool:
    """Return whether all certificates of a host in the cluster are revoked."""
    if host is None or host.forgotten or not host.serials:
        return False
    return {int(one, 16) for one in host.serials} <= {*revoked}


async def _remove_records(store: Store, here: str, hosts: Collection[str]) -> None:
    """Remove the records of hosts, with a tombstone for each host's own: by it nobody puts the others back.

    The others get none. The host's blocks were free, so another host may have claimed one, and a tombstone of now would
    count against that claim.
    """
    if not hosts:
        return
    keys = [f"{kind}{host}" for host in hosts for kind in ("hosts/", ALIVE)]
    for kind in ("leases/", ENDPOINTS, *CLAIMS):
        keys += [one.key for one in (await store.list(kind))[0] if _owner(one.key, one.value) in hosts]
    grave = records.encode(Tombstone(here, time.time()), b"", 1)
    graves = [f"{GONE}hosts/{host}" for host in hosts]
    for start in range(0, len(graves), MOST_KEYS):
        await store.transaction(dict.fromkeys(graves[start : start + MOST_KEYS], grave))
    for start in range(0, len(keys), MOST_KEYS):
        await store.transaction({}, keys[start : start + MOST_KEYS])


def _owner(key: str, value: bytes) -> str:
    """Return the id of the host to which a record belongs, '' if it is none's."""
    words = key.split("/")
    if words[0] == "endpoints":
        return words[1]
    return words[-1] if words[0] == "leases" else claimant(value)

