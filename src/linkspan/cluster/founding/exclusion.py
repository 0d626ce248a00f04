"""Exclusion: a host is forgotten. Its user, its certificates, its tokens and its open connections end."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import msgspec

from linkspan.cluster.founding.join_token import TokenRecord
from linkspan.cluster.founding.signer import HOSTS, REVOKED, TOKENS, JoinedHost, Revoked
from linkspan.core.errors import Conflict, NotFound
from linkspan.store.request import MOST_KEYS
from linkspan.store.vault import TRIES, Vault, contended


async def meant(vault: Vault, word: str, here: str) -> tuple[str, JoinedHost]:
    """Return the id of the host that an operator named by name or id, and what is kept of it.

    Raises NotFound, and Conflict if several have the name or it is ``here``, the id of the voter that is asked.
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
        hint = "linkspan cluster leave; or type it on another voter, if there is one"
        raise Conflict(f"host {word} is the voter that you ask", hint)
    return found[0], hosts[found[0]]


async def exclude(vault: Vault, host: str, publish: Callable[[], Awaitable[None]], *, known: bool) -> None:
    """Shut a host out of etcd: after this it reads nothing. What broke off can be repeated. Raises LinkspanError.

    A host that was ``known`` to the others may come back only as a new one, and one whose join broke off as it is. It
    knows the tokens that it joined with, so these let nobody in any more. ``publish`` makes all voters refuse what is
    revoked, and end its connections (``revocation``): meanwhile etcd restarts, and for about a second nothing changes.
    """
    await revoke(vault, host, known=known)
    await vault.dismiss(host)
    await publish()
    kept, revision = await vault.get(HOSTS + host, JoinedHost)
    if kept is not None and not kept.recorded:  # what the first of several tries saw: it removed the records
        await vault.put({HOSTS + host: (None, revision)})


async def release(vault: Vault, host: str) -> None:
    """Let a host go that wants to leave: its user ends, and so do its certificates for new connections.

    It has removed its records, so it may come back at once, with another key. Raises LinkspanError.
    """
    for _ in range(TRIES):
        joined, revision = await vault.get(HOSTS + host, JoinedHost)
        if joined is None:
            break
        done = await vault.all(REVOKED, Revoked)
        left = [serial for serial in joined.serials if serial not in done]
        batch = left[: MOST_KEYS - 1]
        changes: dict[str, tuple[msgspec.Struct | None, int]] = {
            REVOKED + serial: (Revoked(host, time.time(), cut=False), 0) for serial in batch
        }
        if len(batch) == len(left):
            changes[HOSTS + host] = (None, revision)
        if await vault.put(changes) and len(batch) == len(left):
            break
    else:
        raise contended(f"host {host} leaves")
    await vault.dismiss(host)


async def revoke(vault: Vault, host: str, *, known: bool) -> None:
    """Write down that the host is forgotten, and revoke its certificates and the tokens that it joined with."""
    for _ in range(TRIES):
        joined, revision = await vault.get(HOSTS + host, JoinedHost)
        if joined is None:
            return
        done = await vault.all(REVOKED, Revoked)
        changes: dict[str, tuple[msgspec.Struct, int]] = await _tokens(vault, host, joined.token)
        fresh = {REVOKED + serial: (Revoked(host, time.time()), 0) for serial in joined.serials if serial not in done}
        marked = msgspec.structs.replace(joined, forgotten=True, recorded=known or joined.recorded)
        changes |= fresh
        batch = dict(list(changes.items())[: MOST_KEYS - 1])
        if await vault.put({**batch, HOSTS + host: (marked, revision)}) and len(batch) == len(changes):
            return
    raise contended(f"host {host} is forgotten")


async def _tokens(vault: Vault, host: str, last: str) -> dict[str, tuple[msgspec.Struct, int]]:
    """Return the tokens that a host used, ``last`` the last time, as revoked ones by their keys, with revisions."""
    used = [id_ for id_, token in (await vault.all(TOKENS, TokenRecord)).items() if id_ == last or host in token.used]
    found = {TOKENS + id_: await vault.get(TOKENS + id_, TokenRecord) for id_ in used}
    return {
        key: (msgspec.structs.replace(token, revoked=True), revision)
        for key, (token, revision) in found.items()
        if token is not None and not token.revoked
    }
