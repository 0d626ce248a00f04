"""Exact addresses of this host: keeps the store's records equal to its containers' addresses.

A container that was removed while the store was away leaves a record that still names it as the owner. The agent keeps
no list of such work. It compares records and containers at its start, when a record changed, and again after the store
refused a write, and corrects all differences. If another host claims an address that a container here has and never
released, that claim was made after a restore of the store. The earlier claim wins (``blocks.earlier``), and `status`
names the loser.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from linkspan.cluster.blocks import block_of, earlier
from linkspan.cluster.conflicts import ClaimConflict
from linkspan.cluster.exact_claims import IDENTITY
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import ITSELF, Leases
from linkspan.cluster.networks import Networks
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Invalid, LinkspanError
from linkspan.core.model import Endpoint
from linkspan.core.supervise import ended, lasting
from linkspan.store import records
from linkspan.store.records import SHARED, AddressRecord, BlockRecord, address_key, block_key
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.cluster.exact_addresses")

AGAIN = 2.0
"""Seconds until a write is retried that the store refused."""
SOON = 0.5
"""Seconds for which changes are collected before a check."""
Holder = tuple[str, str, str]
"""Container, interface and identity."""
Identity = tuple[str, str]


class ExactAddresses:
    """Compares the records of exact addresses with this host's containers, and corrects the records.

    ``due`` has the keys that must be compared.
    """

    def __init__(
        self,
        replica: Replica,
        hosts: Hosts,
        leases: Leases,
        networks: Networks,
        endpoints: Mapping[Identity, Endpoint],
        busy: Callable[[Identity], bool],
        held: Callable[[str, str], Iterable[tuple[Prefix, str]]],
    ) -> None:
        """``busy`` returns whether an attach or detach of an endpoint is running, which writes its own records.

        ``held`` returns the addresses that containers on a host have in a network, each with the container's name.
        """
        self._replica = replica
        self._hosts = hosts
        self._leases = leases
        self._networks = networks
        self._endpoints = endpoints
        self._busy = busy
        self._held_by = held
        self.due: set[str] = set()
        self.lost: dict[str, ClaimConflict] = {}
        """By key: the addresses of this host's containers that another host owns by the earlier claim."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Check all records, and then those that change."""
        self.due |= {*self._replica.keys_under("addresses/"), *self._held()}
        self._wake.set()
        self._task = lasting("looking after exact addresses", self._follow)

    async def stop(self) -> None:
        """Stop checking."""
        await ended(self._task)

    def changed(self, keys: frozenset[str]) -> None:
        """Check changed records that are or were this host's, and those of a block whose claim was replaced."""
        due = {key for key in keys if key.startswith("addresses/") and self._ours(key)}
        for key in [key for key in keys if key.startswith("blocks/") and key in self._replica.displaced]:
            due |= {*self._replica.keys_under(f"addresses/{key.split('/')[1]}/")}
        self.note(due)

    def _ours(self, key: str) -> bool:
        record = self._replica.value(key, AddressRecord)
        known = key in self._replica.displaced or key in self.lost
        return known or record is None or record.host == self._hosts.here.id

    def note(self, keys: set[str]) -> None:
        """Check these keys soon."""
        self.due |= keys
        if keys:
            self._wake.set()

    def _held(self) -> dict[str, Holder]:
        """Return the holders of exact addresses on this host, by the key of the record."""
        found: dict[str, Holder] = {}
        names = {network.name for network in self._networks.all()}
        for lease in self._leases.own():
            for text in lease.addresses if not lease.prefixes else ():
                found[address_key(lease.network, prefix(text))] = (ITSELF, "", "")
        blocks = {lease.network: lease.blocks for lease in self._leases.own()}
        for endpoint in self._endpoints.values():
            if endpoint.network not in names or endpoint.network not in blocks:
                continue
            for address in endpoint.prefixes:
                if not any(block.holds(address.single()) for block in blocks[endpoint.network]):
                    who = (*endpoint.identity, endpoint.labels.get(IDENTITY, ""))
                    found[address_key(endpoint.network, address)] = who
        return found

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._replica.settled or self._hosts.removed():
                await asyncio.sleep(AGAIN)
                self._wake.set()
                continue
            await asyncio.sleep(SOON)
            due, self.due = sorted(self.due), set()
            strange = [key for key in due if not self._plain(key)]
            held = self._held() if strange else {}
            for key in strange:
                try:
                    await self._look(key, held.get(key))
                except LinkspanError as error:
                    log.debug("%s: %s", key, error.message)
                    self.due.add(key)
            if self.due:
                await asyncio.sleep(AGAIN)
                self._wake.set()

    def _plain(self, key: str) -> bool:
        """Return whether a record matches its container, so that there is nothing to correct: nearly all do."""
        record = self._replica.value(key, AddressRecord)
        if record is None or record.host != self._hosts.here.id or key in self._replica.displaced:
            return False
        if any(one.startswith("blocks/") for one in self._replica.displaced):
            return False
        endpoint = self._endpoints.get((record.container, record.ifname))
        _, name, text = key.split("/", 2)
        return (
            endpoint is not None
            and endpoint.network == name
            and any(p.address == text for p in endpoint.prefixes)
        )

    async def _look(self, key: str, held: Holder | None) -> None:
        _, name, text = key.split("/", 2)
        record, here = self._replica.value(key, AddressRecord), self._hosts.here.id
        self.lost.pop(key, None)
        if key in self._replica.unreadable:
            return
        if held is None:
            if record is not None and record.host == here and record.container != ITSELF:
                if self._busy((record.container, record.ifname)):
                    self.due.add(key)
                    return
                await self._leases.give_back(name, prefix(text).single())
                log.info("address %s of network %s was in use by no container, and is released", text, name)
            return
        if record is not None and record.host == here:
            await self._share_again(name, prefix(text).single())
        elif record is None or not record.host:
            await self._put(key, held, record)
        elif earlier(self._displaced(key), record, here):
            await self._put(key, held, record)
            log.warning("address %s was this host's before host %s took it", text, record.host)
        else:
            self.lost[key] = ClaimConflict(name, f"address {text}", record.host, here, (held[0],), (text,))

    def _displaced(self, key: str) -> AddressRecord | None:
        try:
            mine = records.decode(self._replica.displaced[key], AddressRecord)
        except (KeyError, Invalid):
            return None
        return mine if mine.host == self._hosts.here.id else None

    async def _put(self, key: str, held: Holder, found: AddressRecord | None) -> None:
        """Put back the record of a container's address, if need be over another host's later claim ``found``."""
        container, ifname, identity = held
        mine = self._displaced(key)
        at = mine.at if mine else found.at if found and found.host else time.time()
        over = found.host if found else ""
        ours = AddressRecord(self._hosts.here.id, container, ifname, at, identity, back=True, over=over)
        if found is None:
            await self._replica.write({key: ours}, absent=[key])
        else:
            await self._replica.write({key: ours}, unchanged={key: await self._replica.revision(key)})

    async def _share_again(self, name: str, address: Prefix) -> None:
        """Make the address's block shared again, if another host has claimed it after the store lost its record."""
        key = block_key(name, block_of(self._networks.get(name), address))
        found, here = self._replica.value(key, BlockRecord), self._hosts.here.id
        if found is None or found.owner in (SHARED, here) or key not in self._replica.displaced:
            return
        mine = records.decode(self._replica.displaced[key], BlockRecord)
        if mine.owner == SHARED and not found.back:
            ours = msgspec.structs.replace(mine, back=True, over=found.owner)
            await self._replica.write({key: ours}, unchanged={key: await self._replica.revision(key)})

    def open(self) -> list[ClaimConflict]:
        """Return the open conflicts about exact addresses: those that this host lost, and those that it won."""
        found = list(self.lost.values())
        for name in self._replica.groups("addresses"):
            for address, record in self._leases.exact(name).of_host(self._hosts.here.id).items():
                found += self._loser(name, address.address, record) if record.over else []
        return found

    def _loser(self, name: str, text: str, record: AddressRecord) -> list[ClaimConflict]:
        """Return the conflict about an address that this host won, as long as the loser's container still has it."""
        return [
            ClaimConflict(name, f"address {text}", record.host, record.over, (called,), (text,))
            for address, called in self._held_by(name, record.over)
            if address.address == text
        ]
