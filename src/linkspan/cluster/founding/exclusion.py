"""Exclusion: a host is forgotten. Its user, its certificates and its open connections end."""

from __future__ import annotations

import time

import msgspec

from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.foundation import renew_revoked
from linkspan.cluster.founding.signer import HOSTS, REVOKED, JoinedHost, Revoked
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import Conflict, NotFound
from linkspan.store.request import MOST_KEYS
from linkspan.store.vault import TRIES, Vault, contended


async def meant(vault: Vault, word: str, here: str) -> tuple[str, JoinedHost]:
    """Return the id of the host that an operator named by name or id, and what is kept of it.

    Raises NotFound, and Conflict if several have the name or it is ``here``, the id of the voter itself.
    """
    hosts = await vault.all(HOSTS, JoinedHost)
    named = {id_: host for id_, host in hosts.items() if host.name == word}
    inside = [id_ for id_, host in named.items() if not host.forgotten]
    found = [word] if word in hosts else inside or [*named]  # forgotten ones too: the last time may have broken off
    if not found:
        names = ", ".join(sorted(host.name for host in hosts.values() if not host.forgotten))
        raise NotFound(f"no host {word} has joined this cluster", f"those that did: {names}")
    if len(found) > 1:
        raise Conflict(f"{len(found)} hosts are called {word}", f"give an id: {', '.join(sorted(found))}")
    if found[0] == here:
        raise Conflict(
            f"host {word} is this cluster's voter, which has its records", "name another host: nothing replaces it"
        )
    return found[0], hosts[found[0]]


async def exclude(files: TrustFiles, vault: Vault, service: EtcdService, host: str, *, known: bool) -> None:
    """Shut a host out of etcd: after this it reads nothing. What broke off can be repeated. Raises LinkspanError.

    A host that was ``known`` to the others may come back only as a new one, and one whose join broke off as it is.

    etcd checks the list of revoked certificates at each handshake. It has no call that ends a connection, and a watch
    outlives its user. So etcd restarts, which takes about a second: nothing can be changed meanwhile, and all hosts
    connect again.
    """
    await _revoke(vault, host)
    await renew_revoked(files, vault, service)
    await vault.dismiss(host)
    await service.restart()
    await vault.returned()
    kept, revision = await vault.get(HOSTS + host, JoinedHost)
    if kept is not None and not known:
        await vault.put({HOSTS + host: (None, revision)})


async def _revoke(vault: Vault, host: str) -> None:
    """Write down that the host's certificates are revoked, and that it is forgotten."""
    for _ in range(TRIES):
        known, revision = await vault.get(HOSTS + host, JoinedHost)
        if known is None:
            return
        done = await vault.all(REVOKED, Revoked)
        fresh = {REVOKED + serial: (Revoked(host, time.time()), 0) for serial in known.serials if serial not in done}
        marked = msgspec.structs.replace(known, forgotten=True)
        batch = dict(list(fresh.items())[: MOST_KEYS - 1])
        if await vault.put({**batch, HOSTS + host: (marked, revision)}) and len(batch) == len(fresh):
            return
    raise contended(f"host {host} is forgotten")
