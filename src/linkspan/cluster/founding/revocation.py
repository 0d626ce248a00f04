"""Revocation: the list of revoked certificates on every voter, and the end of connections that a forgotten host has.

etcd checks the list at each handshake. It has no call that ends a connection, and a watch outlives its user, so each
voter's etcd restarts, one after the other. What is revoked is in the vault. Each voter follows it by itself, also one
that was off meanwhile, and writes down what its etcd knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, Set
from typing import Protocol

import msgspec

from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.signer import REVOKED, Revoked
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import Unavailable
from linkspan.store.vault import Vault

PUBLISHED = "published/"
"""Prefix of the vault's keys that say what a voter's etcd knows; the host's id follows."""
RESTART = "voting/restart"
"""The vault's key of the voter whose etcd restarts now."""
RESTART_SECONDS = 20.0
"""Seconds for one voter's restart; then the next one does not wait any longer."""
PATIENCE = 60.0
"""Seconds for all voters that answer."""
AGAIN = 0.2


class Published(msgspec.Struct, frozen=True):
    """The digest of the serial numbers that a voter's etcd refuses."""

    digest: str


class Restarting(msgspec.Struct, frozen=True):
    """Which host's etcd restarts, so that no other one does."""

    host: str


class Restarts(Protocol):
    """An etcd that can be restarted."""

    async def restart(self) -> None:
        """End it, with all its connections, and start it again."""


async def restart_in_turn(vault: Vault, service: Restarts, host: str) -> None:
    """Restart this voter's etcd while no other voter's restarts, and wait until it answers.

    Raises LinkspanError if it was not restarted.
    """
    deadline = time.monotonic() + RESTART_SECONDS
    while not await vault.hold(RESTART, Restarting(host), RESTART_SECONDS):
        if time.monotonic() > deadline:
            break  # whoever has it is dead, or slow: a forgotten host must not wait for that
        await asyncio.sleep(AGAIN)
    await service.restart()
    with contextlib.suppress(Unavailable):  # it is restarted, and the turn ends by itself
        await vault.returned()
        held, revision = await vault.get(RESTART, Restarting)
        if held is not None and held.host == host:
            await vault.put({RESTART: (None, revision)})


def digest(serials: Iterable[str]) -> str:
    """Return the digest of a set of serial numbers."""
    return hashlib.sha256(" ".join(sorted(serials)).encode()).hexdigest()


class Revocation:
    """Follows what is revoked, on one voter."""

    def __init__(self, files: TrustFiles, vault: Vault, service: EtcdService, host: str) -> None:
        self._files = files
        self._vault = vault
        self._service = service
        self._host = host
        self._turn = asyncio.Lock()

    def _known(self) -> Set[str]:
        """Return the serial numbers that this voter's etcd refuses, also on connections that were open."""
        try:
            return frozenset(msgspec.json.decode(self._files.revoked.read_bytes(), type=list[str]))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return frozenset()

    async def look(self) -> None:
        """Write the list if something was revoked, and restart etcd if connections must end. Raises LinkspanError."""
        async with self._turn:
            revoked = await self._vault.all(REVOKED, Revoked)
            known = await asyncio.to_thread(self._known)
            if fresh := revoked.keys() - known:
                from linkspan.cluster.founding.foundation import (
                    renew_revoked,  # cryptography: 10 MB that only signing needs
                )

                await renew_revoked(self._files, self._vault, self._service)
                if any(revoked[serial].cut for serial in fresh):
                    await restart_in_turn(self._vault, self._service, self._host)
                content = msgspec.json.encode(sorted(revoked))
                await asyncio.to_thread(self._files.put, self._files.revoked, content)
            told, revision = await self._vault.get(PUBLISHED + self._host, Published)
            if told is None or told.digest != digest(revoked):
                await self._vault.put({PUBLISHED + self._host: (Published(digest(revoked)), revision)})

    async def everywhere(self, voters: Callable[[], Awaitable[Set[str]]]) -> None:
        """Wait until every voter that answers refuses what is revoked; ``voters`` returns their hosts' ids.

        One that does not answer does so as soon as it is back. Raises Unavailable.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            late: Set[str] = {"this host"}
            with contextlib.suppress(Unavailable):  # others' restarts, and elections after them
                await self.look()
                wanted = digest(await self._vault.all(REVOKED, Revoked))
                told = await self._vault.all(PUBLISHED, Published)
                late = {host for host in await voters() if host not in told or told[host].digest != wanted}
            if not late:
                return
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the host's certificates are revoked, and its open connections end not yet at {', '.join(late)}",
                    "do the agents of all voters run? (`linkspan cluster members`) Then forget it again",
                )
            await asyncio.sleep(AGAIN)
