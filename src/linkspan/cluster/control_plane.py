"""Control plane addresses, which rules close to containers: the store, the switches and what other hosts publish.

A host knows the store's endpoints from its own URL, and the advertised addresses of etcd's members. A store may have
several addresses, and containers must not reach it by one that only another host uses. So each host publishes the
addresses that it knows in its record (``Host.control``). The controller publishes the switches' addresses
(``settings/control``).

A name is resolved again every EVERY seconds. Each address that it ever had stays closed, up to MOST, because a resolver
may answer with a part of them, or not at all. A file keeps them, so the rules exist before the first container, even if
no resolver answers after a start.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import msgspec

from linkspan.cluster.hosts import Hosts
from linkspan.cluster.networks import Networks
from linkspan.cluster.own_record import OwnRecord
from linkspan.core.addresses import place, prefix
from linkspan.core.errors import Invalid, LinkspanError
from linkspan.core.supervise import ended, lasting
from linkspan.kernel.io.durable_files import write
from linkspan.store.derived import Derived
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.cluster.control_plane")

EVERY = 10.0
"""Seconds between two searches: names may get other addresses, and etcd other members."""
PATIENCE = 2.0
"""Seconds that a search waits for the resolver."""
MOST = 256
"""Most addresses that this host keeps of its own, and that it takes from one record."""
SWITCHES = "settings/control"
"""The key of the record with the addresses of the devices that the controller programs."""
FILE = "control.json"

Place = tuple[str, int]
"""An address and a TCP port."""


class Control(msgspec.Struct, frozen=True):
    """Addresses with TCP ports, ``192.0.2.9:6653`` or ``[2001:db8::9]:6653``, that are closed to containers."""

    places: tuple[str, ...] = ()


class Closed(msgspec.Struct, frozen=True):
    """Targets that rules close to containers: places, and ports at every address of this host (``here``)."""

    places: tuple[Place, ...] = ()
    here: tuple[int, ...] = ()


def text(where: Place) -> str:
    """Return a place as records have it."""
    address, port = where
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parsed(texts: Iterable[str]) -> list[Place]:
    """Return the places of a record, without invalid ones and those whose address belongs to no single machine."""
    found = []
    for one in list(texts)[:MOST]:
        try:
            address, port = place(one)
        except Invalid:
            continue
        if port and not _special(address.address):
            found.append((address.address, port))
    return found


def _special(address: str) -> bool:
    """Return whether an address means a different machine to each reader (as loopback does), or none."""
    found = ipaddress.ip_address(address)
    return found.is_loopback or found.is_unspecified or found.is_multicast or found.is_link_local


async def resolved(services: Iterable[str]) -> dict[str, list[str]]:
    """Return the present addresses of each HOST:PORT; without those whose host has none."""
    names = {service: service.rpartition(":")[0].strip("[]") for service in services}
    loop = asyncio.get_running_loop()

    async def look(name: str) -> list[str]:
        with contextlib.suppress(Invalid):  # an address is no question: it need not take the way to another thread
            return [prefix(name).address]
        try:
            async with asyncio.timeout(PATIENCE):
                found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # TimeoutError is an OSError
            return []
        return list(dict.fromkeys(str(one[4][0]).partition("%")[0] for one in found))

    hosts = sorted(set(names.values()))
    addresses = dict(zip(hosts, await asyncio.gather(*map(look, hosts)), strict=True))
    return {service: addresses[name] for service, name in names.items() if addresses[name]}


class ControlPlane:
    """Finds the control plane's addresses, and calls ``changed`` if they changed."""

    def __init__(
        self,
        state_dir: Path,
        replica: Replica,
        own_record: OwnRecord,
        hosts: Hosts,
        networks: Networks,
        addresses: Callable[[], Awaitable[frozenset[str]]],
        changed: Callable[[], Awaitable[object]],
    ) -> None:
        """``addresses`` returns all addresses of this host."""
        self._file = state_dir / FILE
        self._replica = replica
        self._own_record = own_record
        self._hosts = hosts
        self._networks = networks
        self._addresses = addresses
        self._changed = changed
        self._local: frozenset[str] = frozenset()
        self._known: dict[str, list[str]] = self._remembered()
        """The addresses of each service (HOST:PORT), the latest first."""
        self._closed = Derived(self._inputs, self._found)
        self._task: asyncio.Task[None] | None = None

    def _remembered(self) -> dict[str, list[str]]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, list[str]])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return {}  # the first start, or a damaged file: the first search finds them again

    def closed(self) -> Closed:
        """Return the targets that are closed now, from this host's knowledge and all records."""
        return self._closed.get()

    def _inputs(self) -> object:
        """Return what ``closed`` follows from; both attributes are replaced, and never changed."""
        return self._replica.changes("hosts", "settings"), self._networks.all(), self._local, self._known

    def _found(self) -> Closed:
        own = self._own()
        devices = self._replica.value(SWITCHES, Control)
        texts = {host.control for host in self._hosts.all().values()}  # most hosts publish the same
        texts |= {devices.places} if devices is not None else set()
        told = {where for one in texts for where in parsed(one) if not self._in_pool(where[0])}
        here = {port for address, port in own | told if self._is_local(address)}
        every = own | told | {(address, port) for address in self._local for port in here}
        return Closed(tuple(sorted(every)), tuple(sorted(here)))

    def _own(self) -> set[Place]:
        found = set()
        for service, addresses in self._known.items():
            port = service.rpartition(":")[2]
            if port.isdigit() and 0 < int(port) < 65536:
                found |= {(address, int(port)) for address in addresses}
        return found

    def _in_pool(self, address: str) -> bool:
        """Return whether an address is in a pool: no record may close containers to each other."""
        return any(pool.holds(prefix(address)) for network in self._networks.all() for pool in network.prefixes)

    def _is_local(self, address: str) -> bool:
        found = ipaddress.ip_address(address)
        return address in self._local or found.is_loopback or found.is_unspecified

    async def look(self) -> bool:
        """Search once, and return whether the closed targets changed; without an answer a service keeps its addresses.

        Raises LinkspanError if this host's own addresses cannot be read.
        """
        before = self.closed()
        self._local = await self._addresses()
        found = await resolved(await self._replica.store.services())
        known = {service: _latest(addresses, self._known.get(service, [])) for service, addresses in found.items()}
        merged = dict(list((known | {k: v for k, v in self._known.items() if k not in known}).items())[:MOST])
        if merged != self._known:
            self._known = merged
            self._save()
        control = tuple(sorted(text(where) for where in self._published()))
        self._own_record.change(control=control)
        return self.closed() != before

    def _published(self) -> set[Place]:
        """Return the places for the other hosts; if the store is on this host, with all of this host's addresses."""
        own = self._own()
        here = {port for address, port in own if self._is_local(address)}
        every = own | {(address, port) for address in self._local for port in here}
        return {(address, port) for address, port in every if not (_special(address) or self._in_pool(address))}

    def _save(self) -> None:
        try:
            write(self._file, msgspec.json.encode(self._known), 0o600)
        except OSError as error:
            log.warning("%s: %s", self._file, error.strerror)

    def start(self) -> None:
        """Start to search every EVERY seconds."""
        self._task = lasting("looking where the control plane is", self._follow)

    async def stop(self) -> None:
        """Stop searching."""
        await ended(self._task)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            try:
                if await self.look():
                    await self._changed()
            except LinkspanError as error:
                log.debug("control plane: %s", error.message)


def _latest(new: list[str], old: list[str]) -> list[str]:
    """Return both lists, the new addresses first, without the oldest beyond MOST."""
    return list(dict.fromkeys([*sorted(new), *old]))[:MOST]
