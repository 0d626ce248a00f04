"""Exclusion: a host is forgotten. Its user, its certificates, its tokens and its open connections end."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from linkspan.cluster.founding.join_token import TokenRecord
from linkspan.cluster.founding.signer import HOSTS, REVOKED, TOKENS, JoinedHost, Revoked
from linkspan.core.errors import Conflict, NotFound
from linkspan.store.request import MOST_KEYS
from linkspan.store.vault import TRIES, Vault, contended


def named(hosts: Mapping[str, JoinedHost], word: str, names: Mapping[str, str]) -> str:
    """Return the id of the host in the cluster that an operator named by name or id. Pure.

    ``names`` are the hosts' names by id, as their records have them: a host may have been renamed since it joined.
    Raises NotFound, and Conflict if several have the name.
    """
    inside = {id_: {host.name, names.get(id_)} for id_, host in hosts.items() if not host.forgotten}
    found = [word] if word in inside else [id_ for id_, called in inside.items() if word in called]
    if not found:
        raise _missing(hosts, word, names)
    if len(found) > 1:
        raise Conflict(f"{len(found)} hosts are called {word}", f"give an id: {', '.join(sorted(found))}")
    return found[0]


def forgettable(
    hosts: Mapping[str, JoinedHost], word: str, names: Mapping[str, str], lives: Callable[[str], bool | None]
) -> str:
    """Return the id of the host that an operator wants to forget, by its name or id. Pure.

    ``names`` are as above, and ``lives`` says of an id whether its host lives (None: nobody knows). A host with a
    record is there, whatever else is known of it: the last forget may have broken off, or a restore may have brought
    its records back. If several hosts of the name are there, only an id says which one is meant: else a living host
    would go instead of what is left of its predecessor. Raises NotFound or Conflict.
    """
    if word in hosts or word in names:
        return word
    every = {id_: {names.get(id_), hosts[id_].name if id_ in hosts else None} for id_ in {*hosts, *names}}
    called = sorted(id_ for id_, words in every.items() if word in words)
    there = [id_ for id_ in called if id_ in names or not hosts[id_].forgotten]
    found = there or called
    if not found:
        raise _missing(hosts, word, names)
    if len(found) > 1:
        told = ", ".join(f"{id_} ({_standing(hosts.get(id_), lives(id_))})" for id_ in found)
        raise Conflict(f"{len(found)} hosts are called {word}: {told}", _choice([*found], lives))
    return found[0]


def _standing(joined: JoinedHost | None, lives: bool | None) -> str:
    """Return what is known of a host, for people."""
    now = {True: "it lives", False: "it does not live", None: "nobody knows whether it lives"}[lives]
    return f"{now}, and was forgotten before" if joined is not None and joined.forgotten else now


def _choice(found: Sequence[str], lives: Callable[[str], bool | None]) -> str:
    """Return how to say which of several hosts of one name is to be forgotten."""
    dead = [id_ for id_ in found if lives(id_) is False]
    if len(dead) == 1:
        return f"to forget the one that does not live: linkspan cluster forget {dead[0]}"
    return "give the id of the one to forget: linkspan cluster forget ID"


def _missing(hosts: Mapping[str, JoinedHost], word: str, names: Mapping[str, str]) -> NotFound:
    known = {id_: names.get(id_, host.name) for id_, host in hosts.items() if not host.forgotten} | dict(names)
    return NotFound(f"no host {word} is in this cluster", f"its hosts: {', '.join(sorted(known.values()))}")


async def exclude(vault: Vault, host: str, publish: Callable[[], Awaitable[None]], *, known: bool) -> None:
    """Shut a host out of etcd: after this it reads nothing. What broke off can be repeated. Raises LinkspanError.

    A host that was ``known`` to the others may come back only as a new one, and one whose join broke off as it is. It
    knows the tokens that it joined with, so these let nobody in any more. ``publish`` makes all voters refuse what is
    revoked, and end its connections (``revocation``): meanwhile etcd restarts, and for about a second nothing changes.
    """
    await shut_out(vault, host, known=known)
    await publish()
    kept, revision = await vault.get(HOSTS + host, JoinedHost)
    if kept is not None and not kept.recorded:  # what the first of several tries saw: it removed the records
        await vault.put({HOSTS + host: (None, revision)})


async def shut_out(vault: Vault, host: str, *, known: bool) -> None:
    """Forget a host: its user, its certificates and its tokens end, and nothing is left to do but to publish that.

    It is marked first, so that it does not come back meanwhile. Then its user ends, however much there is to revoke.
    """
    await _mark(vault, host, known=known)
    await vault.dismiss(host)
    await _revoke(vault, host, cut=True)
    joined, _ = await vault.get(HOSTS + host, JoinedHost)
    for id_, token in (await vault.all(TOKENS, TokenRecord)).items():
        if host in token.used or (joined is not None and joined.token == id_):
            await end_token(vault, id_)


async def release(vault: Vault, host: str) -> None:
    """Let a host go that wants to leave: its user ends, and so do its certificates for new connections.

    It has removed its records, so it may come back at once, with another key. Connections that are open stay, for the
    others shall not feel it. So what is kept of the host remains: if it must not be trusted, an operator can still
    forget it. Raises LinkspanError.
    """
    await _mark(vault, host, known=False)
    await vault.dismiss(host)
    await _revoke(vault, host, cut=False)


async def _mark(vault: Vault, host: str, *, known: bool) -> None:
    """Write down that a host is forgotten."""
    for _ in range(TRIES):
        joined, revision = await vault.get(HOSTS + host, JoinedHost)
        if joined is None:
            return
        marked = msgspec.structs.replace(joined, forgotten=True, recorded=known or joined.recorded)
        if marked == joined or await vault.put({HOSTS + host: (marked, revision)}):
            return
    raise contended(f"host {host} is forgotten")


async def _revoke(vault: Vault, host: str, *, cut: bool) -> None:
    """Revoke all certificates of a host; ``cut``: also those that are revoked without that."""
    for _ in range(TRIES):
        joined, _ = await vault.get(HOSTS + host, JoinedHost)
        done = await vault.all(REVOKED, Revoked)
        serials = () if joined is None else joined.serials
        left = [one for one in serials if one not in done or (cut and not done[one].cut)]
        changes: list[tuple[str, tuple[Revoked, int]]] = []
        for serial in left:
            revision = (await vault.get(REVOKED + serial, Revoked))[1] if serial in done else 0
            changes.append((REVOKED + serial, (Revoked(host, time.time(), cut=cut), revision)))
        parts = [dict(changes[start : start + MOST_KEYS]) for start in range(0, len(changes), MOST_KEYS)]
        if all([await vault.put(part) for part in parts]):
            return
    raise contended(f"the certificates of host {host}")


async def end_token(vault: Vault, id_: str) -> None:
    """Let nobody in any more with a token, if there is one. Raises LinkspanError."""
    for _ in range(TRIES):
        token, revision = await vault.get(TOKENS + id_, TokenRecord)
        if token is None or token.revoked:
            return
        if await vault.put({TOKENS + id_: (msgspec.structs.replace(token, revoked=True), revision)}):
            return
    raise contended(f"token {id_}")
