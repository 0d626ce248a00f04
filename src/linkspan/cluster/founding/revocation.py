"""Revocation: the list of revoked certificates on every voter, and the end of connections that a forgotten host has.

etcd checks the list at each handshake. It has no call that ends a connection, and a watch outlives its user, so each
voter's etcd restarts, one after the other. What is revoked is in the vault. Each voter follows it by itself, also one
that was off meanwhile, and writes down what its etcd knows.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Protocol

import msgspec

from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.restart_turn import RESTART_SECONDS, restart_in_turn
from linkspan.cluster.founding.signer import REVOKED, Revoked
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import Conflict, LinkspanError, Unavailable
from linkspan.store.vault import Vault

PUBLISHED = "published/"
"""Prefix of the vault's keys that say what a voter's etcd knows; the host's id follows."""
PATIENCE = 60.0
"""Seconds for all voters that answer."""
STUCK = RESTART_SECONDS + 5.0
"""Seconds for which a problem may last: a voter whose agent is killed in its turn to restart keeps it for that long."""
OFF = 12.0
"""Seconds for which agents must be off until they are not waited for: a restart, also by systemd, takes less."""
AGAIN = 0.2
ENDED = "the host's user and its certificates have ended"
"""What is done already when the rest fails."""
AGAIN_HINT = "type the same again"
MEMBERS = f"do the agents of all voters run? `linkspan cluster members`; then {AGAIN_HINT}"
ELSEWHERE = f"on a voter (`linkspan cluster members`) {AGAIN_HINT}"
OPEN = ":open"
"""The end of a mark of a certificate whose open connections go on: its host left by itself."""


class Published(msgspec.Struct, frozen=True):
    """The digest of the ``marks`` that a voter's etcd has carried out."""

    digest: str


class Others(Protocol):
    """The voters as this one knows them."""

    async def answering(self) -> frozenset[str]:
        """Return the ids of the hosts whose voters answer now."""

    def idle(self, host: str) -> bool:
        """Return whether a host's agent does not run, as far as anybody knows."""

    def name(self, host: str) -> str:
        """Return a host's name."""


def marks(revoked: Mapping[str, Revoked]) -> frozenset[str]:
    """Return what a voter must know: each serial number, with ``:open`` where open connections go on."""
    return frozenset(serial if one.cut else f"{serial}{OPEN}" for serial, one in revoked.items())


def digest(known: Iterable[str]) -> str:
    """Return the digest of a set of ``marks``."""
    return hashlib.sha256(" ".join(sorted(known)).encode()).hexdigest()


def interrupted(*, voter: bool) -> LinkspanError:
    """Return the error if a part ended before the rest was done; ``voter``: this host has begun another one."""
    if voter:
        return Unavailable(f"{ENDED}, and meanwhile this voter's etcd has begun again", AGAIN_HINT)
    return Conflict(f"{ENDED}, and meanwhile this host has become a client, which cannot do the rest", ELSEWHERE)


class Revocation:
    """Follows what is revoked, on one voter."""

    def __init__(self, files: TrustFiles, vault: Vault, service: EtcdService, host: str) -> None:
        self._files = files
        self._vault = vault
        self._service = service
        self._host = host
        self._turn = asyncio.Lock()

    def _known(self) -> Set[str]:
        """Return the ``marks`` that this voter's etcd has carried out."""
        try:
            return frozenset(msgspec.json.decode(self._files.revoked.read_bytes(), type=list[str]))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return frozenset()

    async def look(self) -> None:
        """Write the list if something was revoked, and restart etcd if connections must end. Raises LinkspanError."""
        async with self._turn:
            wanted = marks(await self._vault.all(REVOKED, Revoked))
            if fresh := wanted - await asyncio.to_thread(self._known):
                from linkspan.cluster.founding.foundation import (
                    renew_revoked,  # cryptography: 10 MB that only signing needs
                )

                await renew_revoked(self._files, self._vault, self._service)
                if any(not one.endswith(OPEN) for one in fresh):
                    await restart_in_turn(self._vault, self._service, self._host)
                content = msgspec.json.encode(sorted(wanted))
                await asyncio.to_thread(self._files.put, self._files.revoked, content)
            told, revision = await self._vault.get(PUBLISHED + self._host, Published)
            if told is None or told.digest != digest(wanted):
                await self._vault.put({PUBLISHED + self._host: (Published(digest(wanted)), revision)})

    async def everywhere(self, voters: Others, ended: Callable[[], LinkspanError | None]) -> None:
        """Wait until every voter that answers refuses what is revoked.

        One that does not answer does so as soon as it is back. ``ended`` returns why this host cannot do the rest, None
        if it can. Raises that, and Unavailable as soon as it is known that waiting does not help.
        """
        begun = changed = time.monotonic()
        idle_since = float("inf")
        before: object = None
        while True:
            late: Set[str] = frozenset([self._host])
            why = hint = ""
            try:
                await self.look()
                wanted = digest(marks(await self._vault.all(REVOKED, Revoked)))
                told = await self._vault.all(PUBLISHED, Published)
                late = {host for host in await voters.answering() if host not in told or told[host].digest != wanted}
            except Unavailable as failed:  # others' restarts, elections after them, or a voter that is missed
                why, hint = failed.message, failed.hint
            if not late:
                return
            if (error := ended()) is not None:
                raise error
            now, state = time.monotonic(), (late, bool(why))
            if state != before:
                before, changed = state, now
            idle_since = min(idle_since, now) if all(map(voters.idle, late)) else float("inf")
            if (off := now - idle_since > OFF) or (why and now - changed > STUCK) or now - begun > PATIENCE:
                where = ", ".join(sorted(map(voters.name, late)))
                if off:
                    why, hint = "the agent there does not run", f"start it; then {AGAIN_HINT}"
                open_ = f"{ENDED}, but connections that it opened before are still open at {where}"
                raise Unavailable(f"{open_}{f': {why}' if why else ''}", hint or MEMBERS)
            await asyncio.sleep(AGAIN)
