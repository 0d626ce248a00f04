"""Membership of this host in the cluster: it follows the store's records, in a fixed order.

A change of the records wakes ``converge``, which updates only what depends on them: networks, this host's claims, the
states for the peers concerned, and then the changes that take several steps (of keys and of backends).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping

from linkspan.cluster.claims import RETRY, Claims
from linkspan.cluster.key_rotation import KeyRotation
from linkspan.cluster.migration_runner import MigrationRunner
from linkspan.cluster.network_states import NetworkStates
from linkspan.cluster.networks import Networks
from linkspan.cluster.presence import Presence
from linkspan.cluster.registration import Registration
from linkspan.cluster.withdrawal import Withdrawal
from linkspan.core.errors import LinkspanError
from linkspan.core.model import Network
from linkspan.core.states.host import Key
from linkspan.core.supervise import lasting, pause, woken

log = logging.getLogger("linkspan.cluster.membership")

AGAIN = 5.0
"""Seconds until unfinished work is retried: a claim that failed (no block left, store away), or an error."""
CATCH_UP = 1.0
"""Seconds that a question waits until this host has followed the records: a helper's reload may take longer."""
LOOK_EVERY = 1.0
"""Seconds between two checks of how long this host has been silent."""

IN_FORCE = ("networks/", "hosts/", "allowances/", "reservations/", RETRY)
"""Kinds of records, and of work, that decide which networks are in force, or that belong to networks."""


class Membership:
    """Keeps this host's claims and states as the records want them."""

    def __init__(
        self,
        registration: Registration,
        presence: Presence,
        networks: Networks,
        claims: Claims,
        states: NetworkStates,
        withdrawal: Withdrawal,
        key_rotation: KeyRotation,
        migration_runner: MigrationRunner,
    ) -> None:
        self._registration = registration
        self._presence = presence
        self._networks = networks
        self._claims = claims
        self._states = states
        self._withdrawal = withdrawal
        self._key_rotation = key_rotation
        self._migration_runner = migration_runner
        self._keys: set[str] = set()
        self._watching: dict[int, dict[Key, LinkspanError]] = {}
        self._wake = asyncio.Event()
        self._converging = asyncio.Lock()
        self._followed = asyncio.Event()
        """Set while this host has followed all records that it knows."""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Put this host's record, and follow all records of the store."""
        await self._registration.observe_underlay()
        await self._key_rotation.settle()
        await self._registration.begin()
        self._withdrawal.begin()
        self._tasks = [
            lasting("putting this host's records", self._registration.keep),
            lasting("following the store's records", self._follow),
            lasting("watching this host's silence", self._mind),
        ]
        await self.converge({""})

    async def stop(self) -> None:
        """End all tasks; the records stay, and the liveness record expires."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def changed(self, keys: frozenset[str]) -> None:
        """Wake ``converge`` for these changed keys, as far as they concern this host."""
        if told := self._claims.concerned(keys, self._states.peers.networks):
            self._keys |= told
            self._followed.clear()
            self._wake.set()

    async def _follow(self) -> None:
        while True:
            if not await woken(self._wake, AGAIN):
                if not self._unfinished():
                    continue
                self._keys.add(RETRY)
            try:
                await self.converge()
            except LinkspanError as error:
                log.warning("%s", error.message)

    def _unfinished(self) -> bool:
        if self._networks.withheld:  # perhaps because of a route, and no event says when that is gone
            return True
        host = self._registration.host
        drained = host.settings.get("drained")  # its announcements depend on the containers that are left
        if drained or host.next_keys or self._key_rotation.gathering or self._keys:
            return True
        return self._claims.pending or any(network.migration for network in self._networks.all())

    async def _mind(self) -> None:
        while True:
            await pause(LOOK_EVERY)
            if self._withdrawal.look():
                await self.converge({""})

    async def look_around(self) -> None:
        """Follow a change of this host's own addresses or routes: its record, its leases, its states for each peer."""
        moved = await self._registration.observe_underlay()
        excluded = await self._registration.observe_routes(self._networks)
        if moved:
            await self._registration.announce_move()
        if moved or excluded:
            await self.converge({"networks/"})
        await self._states.look()

    async def reregister(self) -> None:
        """Write this host's changed record, and apply the states that depend on it."""
        await self._registration.try_to_put(logging.WARNING)
        await self.converge({"hosts/"})

    @contextlib.contextmanager
    def watched(self) -> Iterator[Mapping[Key, LinkspanError]]:
        """Collect the errors of every ``converge`` meanwhile: another task may follow what the caller wrote."""
        refused: dict[Key, LinkspanError] = {}
        self._watching[id(refused)] = refused
        try:
            yield refused
        finally:
            del self._watching[id(refused)]

    async def converge(self, keys: set[str] | None = None) -> dict[Key, LinkspanError]:
        """Follow the keys that changed since the last time, and ``keys`` ('' means everything).

        Returns the errors by the key of the state.
        """
        async with self._converging:
            self._followed.clear()
            self._wake.clear()
            changed, self._keys = self._keys | (keys or set()), set()
            try:
                failed = await self._converged(changed)
            except Exception:  # raised again; the keys are not forgotten, but followed once more
                self._keys |= changed
                raise
            finally:
                if not self._keys:
                    self._followed.set()
            for refused in self._watching.values():
                refused.update(failed)
            return failed

    async def _converged(self, changed: set[str]) -> dict[Key, LinkspanError]:
        failed: dict[Key, LinkspanError] = {}
        everything = "" in changed
        if everything or any(key.startswith(("networks/", RETRY)) for key in changed):
            await self._registration.observe_routes(self._networks)
        before = self._networks.all()
        if everything or any(key.startswith(IN_FORCE) for key in changed):
            self._networks.refresh()
        if self._networks.all() != before:  # perhaps no record of theirs changed, only what was in their way
            changed.add("networks/")
        self._registration.adopt_settings()
        await self._claims.follow(changed, everything=everything, alone=not self._presence.second)
        if changed:
            networks = self._networks.all()
            failed = await self._states.apply(changed, everything=everything)
            await self._advance_keys()
            await self._migration_runner.advance(() if failed else self._states.complete(networks))
        self._claims.followed()
        return failed

    async def rotate(self) -> None:
        """Begin to change this host's key."""
        async with self._converging:
            await self._key_rotation.begin()
        await self.converge({f"hosts/{self._registration.host.id}"})

    async def _advance_keys(self) -> None:
        try:
            await self._key_rotation.advance()
        except LinkspanError as error:
            log.warning("%s", error.message)

    async def caught_up(self) -> None:
        """Wait until this host has followed all records that it knows, at most CATCH_UP seconds."""
        await woken(self._followed, CATCH_UP)

    async def take_part(self, network: Network) -> None:
        """Claim a lease in a network for this host's first container in it, and put the states of its peers.

        Raises what ``Leases.claim`` raises.
        """
        with self._claims.participation.expecting(network.name):
            async with self._converging:
                await self._claims.first(network)
            await self.converge()

    async def migrate(self, name: str, way: str, options: Mapping[str, str]) -> Network:
        """Start the migration of a network to the backend ``way``, or reverse a running one.

        Raises LinkspanError if this host sees that the migration would fail.
        """
        await self._migration_runner.begin(name, way, options)
        await self.converge({"networks/"})
        return self._networks.get(name)


def raise_first(refused: Mapping[Key, LinkspanError]) -> None:
    """Raise the first of the errors that ``Membership.watched`` collected, if there is one."""
    for error in refused.values():
        raise error
