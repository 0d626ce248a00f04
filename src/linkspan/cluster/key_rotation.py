"""Key rotation: this host's WireGuard key, made once, and changed while packets flow.

The private key is a file in the state folder. The host's record has the public key, and decides which key is in force.
As in a migration, all hosts accept packets with the new key before any host sends with it:

1. The host makes a second key and announces it (``next_keys``).
2. The others add it as a peer without a prefix, and confirm it in their own records (``takes``). Each one confirms it
   at once, and then once in GATHER for all keys that were announced meanwhile: if a thousand hosts change their keys,
   each one does not write a thousand times.
3. When all have confirmed it, the host's device gets the new key, and the record says at once that it is in force. The
   device makes new sessions from then on, and still accepts packets of sessions with the old key. When the others see
   the record, they move the host's prefixes to the new key. They drop what the host sends in between (about 10 ms).

If the record cannot be written, the device gets the old key back, so a store that is away cuts nobody off. An agent
that ends in between starts with the key of the record.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from linkspan.backends.wireguard.backend import WireguardBackend, serves
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.own_record import OwnRecord
from linkspan.core.clock import loop_time
from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.core.event_log import EventLog
from linkspan.core.host_view import HostView
from linkspan.core.states.host import Key
from linkspan.core.states.wireguard import WireguardKey, key_id
from linkspan.kernel.probe import keys
from linkspan.kernel.probe.keys import NEXT, PRIVATE
from linkspan.kernel.worker import Worker

log = logging.getLogger("linkspan.cluster.key_rotation")

NAME = WireguardBackend.name
GATHER = 5.0
"""Seconds between two confirmations of other hosts' keys."""


class Rotation(msgspec.Struct, frozen=True):
    """State of this host's keys: the short names of its key and of the ``next`` one ('' if there is none).

    ``waiting`` has the names of the hosts that do not accept the next key yet. ``used``: a network encrypts with the
    key.
    """

    key: str
    next: str = ""
    waiting: list[str] = []
    used: bool = True


class KeyRotation:
    """The keys of this host, and the next keys of others that it accepts."""

    def __init__(
        self,
        worker: Worker,
        own_record: OwnRecord,
        hosts: Hosts,
        event_log: EventLog,
        view: Callable[[], HostView],
        put_plans: Callable[[], Awaitable[Mapping[Key, LinkspanError]]],
        register: Callable[[], Awaitable[None]],
        changed: Callable[[], Awaitable[object]],
    ) -> None:
        """Take ``changed``, which is called when the key files have changed; ``register`` writes this host's record."""
        self._worker = worker
        self._own = own_record
        self._hosts = hosts
        self._event_log = event_log
        self._view = view
        self._put_plans = put_plans
        self._register = register
        self._changed = changed
        self.gathering = False
        """True if this host must confirm keys of others again soon."""
        self._said = float("-inf")

    async def settle(self) -> None:
        """Make a key if this host never had one, and put its keys into this host's record."""
        known = self._hosts.record(self._own.host.id)
        recorded = (known or self._own.host).keys.get(NAME, "")
        try:
            found = await self._worker.run(self._settled, recorded)
        except LinkspanError as error:
            log.info("no WireGuard key: %s", error.message)
            found = keys.Found(recorded)
        mine = {NAME: found.public or recorded} if found.public or recorded else {}
        coming = {NAME: found.next} if found.next else {}
        takes = known.takes if known else {}
        self._own.change(keys=mine, next_keys=coming, takes=takes)

    def _settled(self, recorded: str) -> keys.Found:
        folder = self._worker.machine.wireguard.keys
        found = keys.look(folder)
        if recorded and recorded == found.next:
            folder.turn()  # the agent ended after writing the record, and before this
        elif not (recorded or found.public or found.problem):
            folder.make(PRIVATE)
        return keys.look(folder)

    def stand(self) -> Rotation:
        """Return the state of this host's keys."""
        host = self._own.host
        coming = host.next_keys.get(NAME, "")
        used = any(map(serves, self._view().networks))
        return Rotation(key_id(host.keys.get(NAME, "")), key_id(coming), self._waiting() if coming else [], used)

    def _waiting(self) -> list[str]:
        host = self._own.host
        return [
            other.host.name
            for other in self._view().others
            if other.host.takes.get(host.id) != host.next_keys.get(NAME)
        ]

    async def begin(self) -> Rotation:
        """Make and announce a new key, unless one is announced already; return the state of the keys.

        Raises LinkspanError if the key cannot be made, or the record cannot be written.
        """
        host = self._own.host
        if not host.next_keys:
            found = await self._worker.run(keys.look, self._worker.machine.wireguard.keys)
            if not found.public or found.public != host.keys.get(NAME):
                await self._replace()
                return self.stand()
            coming = await self._worker.run(self._worker.machine.wireguard.keys.make, NEXT)
            await self._changed()
            self._own.change(next_keys={NAME: coming})
            try:
                await self._register()
            except LinkspanError:
                self._own.change(next_keys={})
                raise
        return self.stand()

    async def _replace(self) -> None:
        """Make a new key and use it at once: the key in force is lost, so nothing can be sent with it any more."""
        public = await self._worker.run(self._worker.machine.wireguard.keys.make, PRIVATE)
        await self._changed()
        self._own.change(keys={NAME: public}, next_keys={})
        await self._register()
        self._tell(public)

    async def advance(self) -> None:
        """Confirm the other hosts' next keys, and change to this host's next key once all others accept it.

        Raises Unavailable.
        """
        unwell = self._worker.machine.reconciler.unwell(("host", NAME))
        if unwell is None:
            coming = {o.host.id: o.host.next_keys[NAME] for o in self._view().others if NAME in o.host.next_keys}
            now = loop_time()
            differs = coming != self._own.host.takes
            self.gathering = differs and now < self._said + GATHER
            if differs and not self.gathering:
                self._said = now
                self._own.change(takes=coming)
                await self._register()
        if self._own.host.next_keys and not self._waiting():
            await self._turn()

    async def _turn(self) -> None:
        before = self._own.host
        public = before.next_keys[NAME]
        self._own.change(keys={NAME: public}, next_keys={})
        try:
            failed = await self._put_plans()
            if error := next((e for key, e in failed.items() if key[0] in (WireguardKey.__name__, "host")), None):
                raise error
            await self._register()
        except LinkspanError as error:
            self._own.change(keys=before.keys, next_keys=before.next_keys)
            await self._put_plans()
            raise Unavailable(f"the next WireGuard key is not in force yet: {error.message}", error.hint) from error
        await self._worker.run(self._worker.machine.wireguard.keys.turn)
        await self._changed()
        self._tell(public)

    def _tell(self, public: str) -> None:
        self._event_log.add("key", f"WireGuard key {key_id(public)} is in force", key=key_id(public))
