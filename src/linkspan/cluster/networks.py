"""Networks of the cluster, with allowances between them, and reserved addresses."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

import msgspec

from linkspan.backends import backend, migration
from linkspan.core.addresses import BITS, Prefix, pool, prefix
from linkspan.core.contracts import Backend
from linkspan.core.errors import Conflict, Invalid, LinkspanError, NotFound, closest
from linkspan.core.ipam import gateway
from linkspan.core.model import (
    MTUS,
    Allowance,
    Endpoint,
    Host,
    Ipam,
    Lease,
    Network,
    Reservation,
    Underlay,
    checked_name,
)
from linkspan.store import records, validation
from linkspan.store.replica import GONE, Replica
from linkspan.store.request import MOST_KEYS

log = logging.getLogger("linkspan.cluster.networks")

T = TypeVar("T")

BLOCK_LENGTHS = {4: 24, 6: 64}
"""Default lengths of blocks, by family: 253 containers in an IPv4 block; IPv6's usual subnet (RFC 4291 2.5.1)."""


class NetworkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A user's request for a network; empty values mean defaults."""

    name: str
    pools: tuple[str, ...] = ()
    subnet_len: tuple[int, ...] = ()
    backend: str = "auto"
    options: dict[str, str] = {}
    mtu: int = 0
    masquerade: bool = True
    internal: bool = False
    ipam: Ipam = "block"
    expose: tuple[str, ...] = ()


def _taken(way: Backend, network: Network) -> dict[str, str]:
    """Return the network's options that the backend ``way`` accepts too: a migration keeps them."""
    found = {}
    for key, value in network.options.items():
        with contextlib.suppress(LinkspanError):
            way.check(msgspec.structs.replace(network, backend=way.name, options={key: value}))
            found[key] = value
    return found


class Networks:
    """All networks of the cluster, as this host's replica of the store has them."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._networks: dict[str, Network] = {}
        self.withheld: dict[str, str] = {}
        """By name: why a network's record is not in force on this host; an earlier version that was in force stays."""
        self._routes: Mapping[Prefix, str] = {}
        self._underlay: Underlay | None = None
        self._every: dict[str, Network] = {}
        self._allowances: set[Allowance] = set()
        self._reservations: set[Reservation] = set()
        self._tokens: dict[str, object] = {}
        self.refresh()

    def refresh(self) -> None:
        """Adopt the replica's networks, except those that contradict others or this host's own routes."""
        self._every = {network.name: network for network in self._read("networks/", Network)}
        self._networks, self.withheld = self._in_force()
        self._replica.withhold(f"networks/{name}" for name in self.withheld)
        self._tokens = {name: self._tokens.get(name) or object() for name in self._networks}
        self._allowances = set(self._read("allowances/", Allowance))
        self._reservations = set(self._read("reservations/", Reservation))

    def _read(self, prefix_: str, type_: type[T]) -> list[T]:
        return list(self._replica.read(prefix_, type_).values())

    def _in_force(self) -> tuple[dict[str, Network], dict[str, str]]:
        """Return the networks that this host serves, and why the records of others are not in force, both by name.

        If two exclude each other, the one that was in force here stays; if neither was, the one that was written
        earlier.
        """
        before = {name: known for name in self._every if (known := self._known(name)) is not None}

        def rank(network: Network) -> tuple[bool, int, str]:
            return network.name not in before, self._replica.known_revision(f"networks/{network.name}"), network.name

        found: dict[str, Network] = {}
        withheld: dict[str, str] = {}
        taken = _Taken()
        for network in sorted(self._every.values(), key=rank):
            old = before.get(network.name)
            why = taken.by(network) or self._in_the_way(network, old.prefixes if old else ())
            if why:
                if self.withheld.get(network.name) != why:
                    log.warning("network %s is not in force on this host: %s", network.name, why)
                withheld[network.name] = why
            serving = old if why else network
            if serving is not None and (serving is network or not taken.by(serving)):
                found[network.name] = serving
                taken.add(serving)
        return found, withheld

    def _known(self, name: str) -> Network | None:
        """Return a network as it is in force here, or was when the last agent ended; None if it was not in force."""
        if name in self._networks:
            return self._networks[name]
        key = f"networks/{name}"
        try:
            return validation.decode(key, self._replica.remembered[key], Network)
        except (KeyError, Invalid):
            return None

    def _in_the_way(self, network: Network, standing: Collection[Prefix]) -> str:
        """Return which route or underlay address a network's new pools cover, '' if none; ``standing`` ones are old."""
        new = [one for one in network.prefixes if not any(known.holds(one) for known in standing)]
        written = self._replica.known_revision(f"networks/{network.name}")
        for one in new:
            if route := self._crossed(one):
                return f"pool {one} overlaps with this host's route {route}"
            for key, host in self._replica.read("hosts/", Host).items():
                if self._replica.known_revision(key) < written and (address := reached_at(host, one)):
                    return f"pool {one} covers {address}, the underlay address of host {host.name}"
            if self._underlay is not None and (address := _address_in(self._underlay, one)):
                return f"pool {one} covers {address}, this host's own underlay address"
        return ""

    def _crossed(self, one: Prefix) -> str:
        """Return this host's own route that overlaps with a pool, as text; '' if there is none."""
        for destination, way in self._routes.items():
            if destination.length and one.overlaps(destination):
                return f"{destination} {way}"
        return ""

    def look(self, routes: Mapping[Prefix, str], underlay: Underlay | None) -> bool:
        """Take this host's own routes (by destination, with a text such as "dev eth0") and its underlay.

        Returns whether `refresh` may now put a withheld network in force.
        """
        changed = (routes, underlay) != (self._routes, self._underlay)
        self._routes, self._underlay = routes, underlay
        return changed and bool(self.withheld)

    def overlaps(self) -> dict[str, str]:
        """Return a sentence for each network in force whose pools overlap with this host's own routes, by its name."""
        found = {}
        for name, network in self._networks.items():
            for one in network.prefixes:
                if route := self._crossed(one):
                    found[name] = f"pool {one} overlaps with this host's own route {route}"
        return found

    def covering(self, host: Host) -> str:
        """Return why a host cannot be reached, because a pool covers its underlay address; '' if none does."""
        for name, network in self._networks.items():
            for one in network.prefixes:
                if address := reached_at(host, one):
                    return f"its underlay address {address} is in pool {one} of network {name}"
        return ""

    def all(self) -> tuple[Network, ...]:
        """Return the networks in force on this host, in the order of their names."""
        return tuple(self._networks[name] for name in sorted(self._networks))

    def every(self) -> tuple[Network, ...]:
        """Return all networks of the cluster, in the order of their names: as in force here, otherwise as written."""
        found = self._every | self._networks
        return tuple(found[name] for name in sorted(found))

    def token(self, name: str) -> object:
        """Return an object that is the same from a network's creation to its deletion; None if it does not exist."""
        return self._tokens.get(name)

    def get(self, name: str) -> Network:
        """Return a network. Raises NotFound, which names the existing ones, and Conflict if it is not in force here."""
        if name in self.withheld and name not in self._networks:
            raise Conflict(
                f"network {name} is not in force on this host: {self.withheld[name]}",
                f"remove the route, or create a network with another pool; `linkspan network delete {name}` "
                "removes this one",
            )
        try:
            return self._networks[name]
        except KeyError:
            known = ", ".join(sorted(self._networks)) or "none yet"
            look = "`linkspan network list` shows them; a new one: linkspan network create NAME --pool 10.244.0.0/16"
            raise NotFound(
                f"network {name!r} does not exist (there are: {known})", closest(name, self._networks, look)
            ) from None

    def unknown(self, name: str) -> bool:
        """Return whether this host does not know a network, and no record says that somebody deleted it."""
        return name not in self._networks and f"{GONE}networks/{name}" not in self._replica.records

    def missing(self, endpoint: Endpoint) -> str:
        """Return why an endpoint's network does not exist here (`has`), '' if it does."""
        name = endpoint.network
        if self.has(endpoint):
            return ""
        if why := self.withheld.get(name):
            return f"its network is not in force on this host: {why}"
        if why := self._replica.reasons.get(f"networks/{name}"):
            return f"the record of its network cannot be used: {why}"
        return "its network has no record" if self.unknown(name) else "its network was deleted"

    def has(self, endpoint: Endpoint) -> bool:
        """Return whether an endpoint's network still exists: a newer one with its name has other pools."""
        network = self._networks.get(endpoint.network)
        if network is None:
            return False
        pools = network.prefixes
        return not pools or all(any(pool.holds(a.single()) for pool in pools) for a in endpoint.prefixes)

    def planned(
        self,
        request: NetworkRequest,
        routes: Mapping[Prefix, str],
        underlay: Underlay | None,
        uplink_mtu: int,
        hosts: int,
    ) -> Network:
        """Check a request against all networks, hosts and routes, and return the network that it would make.

        ``routes`` are this host's own, by destination, with a text such as "dev eth0"; ``uplink_mtu`` (bytes) counts if
        there is no underlay; ``hosts`` is the number of hosts. Raises Invalid or Conflict.
        """
        checked_name(request.name, "network")
        if request.name in self._every:
            raise Conflict(f"network {request.name} exists", f"linkspan network show {request.name}")
        name = request.backend
        options = dict(request.options)
        if name == "auto":
            name = "bridge" if hosts <= 1 else "vxlan"
            options = options if hosts <= 1 else {"direct": "true"} | options
        way = backend(name)
        for other in self.every():
            if other.bridge == Network(name=request.name, pools=(), subnet_len={}, backend=name).bridge:
                raise Conflict(
                    f"network {request.name} would share its bridge's name with network {other.name}",
                    "choose another name",
                )
        overhead = way.overhead[underlay.outer] if underlay else 0
        network = Network(
            name=request.name,
            pools=tuple(str(pool(text)) for text in request.pools),
            subnet_len={},
            backend=name,
            options=options,
            mtu=request.mtu or (underlay.mtu if underlay else uplink_mtu) - overhead,
            masquerade=request.masquerade,
            internal=request.internal,
            ipam=request.ipam,
            expose=request.expose,
        )
        way.check(network)
        if network.expose and network.on_host:
            raise Invalid(
                f"network {network.name} shares the host's network: there is nothing to expose",
                "every runtime has that itself: start the container with its option for it, such as --network host",
            )
        self._check_mtu(network)
        self._check_overlap(network.name, network.prefixes, routes)
        return _finished(way.completed(network, self._every_way()), request.subnet_len)

    def enlarged(
        self,
        network: Network,
        add_pools: Iterable[str],
        mtu: int,
        options: Mapping[str, str],
        routes: Mapping[Prefix, str],
    ) -> Network:
        """Check a change, and return the changed network; an ``mtu`` of 0 means no change.

        Raises Invalid or Conflict.
        """
        if network.migration is not None:
            raise Conflict(
                f"network {network.name} migrates to {network.migration.backend}, and cannot be changed meanwhile",
                f"wait until it is done; `linkspan network show {network.name}` tells how far it is",
            )
        added = tuple(pool(text) for text in add_pools)
        if options and {**network.options, **options} != network.options:
            raise Invalid(
                f"network {network.name}: options of backend {network.backend} cannot change while it exists",
                "create a second network, or `linkspan network migrate`",
            )
        self._check_overlap("", added, routes)
        changed = msgspec.structs.replace(
            network, pools=(*network.pools, *map(str, added)), mtu=mtu or network.mtu
        )
        self._check_mtu(changed)
        finished = _finished(changed, ())
        if not backend(network.backend).crosses_hosts:
            return finished
        # Hosts have blocks already, so the length of blocks stays.
        lengths = finished.subnet_len | network.subnet_len
        for one in added:
            if one.length > lengths[str(one.family)]:
                raise Invalid(
                    f"pool {one} is smaller than a block of network {network.name}, /{lengths[str(one.family)]}",
                    f"give a prefix of /{lengths[str(one.family)]} or a shorter one",
                )
        return msgspec.structs.replace(finished, subnet_len=lengths)

    def _check_mtu(self, network: Network) -> None:
        if not MTUS[0] <= network.mtu <= MTUS[1]:
            raise Invalid(f"network {network.name}: MTU {network.mtu} is not from {MTUS[0]} to {MTUS[1]}")

    def _check_overlap(self, name: str, pools: tuple[Prefix, ...], routes: Mapping[Prefix, str]) -> None:
        for number, one in enumerate(pools):
            for other in pools[number + 1 :]:
                if one.overlaps(other):
                    raise Invalid(f"pools {one} and {other} overlap", "leave one out")
            for network in self.every():
                for other in network.prefixes:
                    if network.name != name and one.overlaps(other):
                        raise Conflict(
                            f"pool {one} overlaps with pool {other} of network {network.name}",
                            "choose another prefix; `linkspan network list` shows those in use",
                        )
            for destination, way in routes.items():
                if destination.length and one.overlaps(destination):
                    raise Conflict(
                        f"pool {one} overlaps with this host's route {destination} {way}",
                        "choose a prefix that the host does not route, `ip route` shows them",
                    )
            for host in self._replica.read("hosts/", Host).values():
                if address := reached_at(host, one):
                    raise Conflict(
                        f"pool {one} covers {address}, the underlay address of host {host.name}",
                        "choose a prefix that no host's underlay is in",
                    )

    async def create(self, network: Network) -> None:
        """Write a planned network into the store. Raises Unavailable, and Conflict if another host was quicker."""
        self._replica.require_settled(f"create network {network.name}")
        if f"networks/{network.name}" not in self._replica.records:
            await self._clear(network.name)  # a host may have ended in the middle of the network's last deletion
        keys: dict[str, bytes | msgspec.Struct] = {key: network.name.encode() for key in _claims(network)}
        keys[f"networks/{network.name}"] = network
        if not await self._replica.write(keys, absent=list(keys)):
            raise Conflict(
                f"network {network.name}, or what it needs for itself, was made by another host at this moment",
                "look at `linkspan network list`, and try again",
            )
        self.refresh()

    def revision(self, network: Network) -> dict[str, int]:
        """Return the condition, for a write, that the network's record has not changed since this host read it."""
        key = f"networks/{network.name}"
        return {key: self._replica.known_revision(key)}

    def _every_way(self) -> list[Network]:
        """Return the networks as they are, and the migrating ones also as they will be."""
        return [one for network in self.every() for one in network.ways]

    def migrated(
        self, network: Network, name: str, options: Mapping[str, str], here: Underlay, leases: Iterable[Lease]
    ) -> Network:
        """Check a migration to backend ``name``, or its reversal, and return the record of its start.

        Raises Invalid or Conflict.
        """
        if network.migration is not None and name == network.backend:
            migration.check_back(network, options)
            return migration.turned(network, leases)
        migration.check(network, name)
        way = backend(name)
        new = msgspec.structs.replace(network, backend=name, options={**_taken(way, network), **options})
        way.check(new)
        others = [one for one in self._every_way() if one.name != network.name]
        changed = migration.started(network, way.completed(new, others), here, leases)
        for one in changed.ways:
            self._check_mtu(one)
        return changed

    async def turn(self, old: Network, new: Network) -> bool:
        """Replace a network's record by its next step in a migration; return False if another host was quicker.

        The first step claims what only one network may have (such as a VNI), the last one releases the old backend's.
        """
        key = f"networks/{old.name}"
        record = await self._replica.store.get(key)
        if record is None or records.decode(record.value, Network) != old:
            return False
        had, has = set(_claims(old)), set(_claims(new))
        puts: dict[str, bytes | msgspec.Struct] = {claim: old.name.encode() for claim in has - had}
        puts[key] = new
        done = await self._replica.write(
            puts, deletes=sorted(had - has), absent=sorted(has - had), unchanged={key: record.revision}
        )
        self.refresh()
        return done

    async def delete(self, name: str) -> None:
        """Delete a network, its allowances and reservations, and all claims in it. Raises NotFound or Unavailable."""
        gone = [a for a in self._allowances if name in (a.source, a.target)]
        reserved = [r for r in self._reservations if r.network == name]
        known = next((network for network in self.every() if network.name == name), None) or self.get(name)
        keys = [f"networks/{name}", *(key for key in _claims(known) if key in self._replica.records)]
        await self._replica.write({}, deletes=keys)  # from here on nobody claims anything in it
        self.refresh()
        await self._clear(name, [*map(_allowance_key, gone), *map(_reservation_key, reserved)])
        self.refresh()

    async def _clear(self, name: str, more: Iterable[str] = ()) -> None:
        """Delete the claims in a deleted network, and the keys of ``more``, in as many transactions as they need."""
        kinds = ("leases", "blocks", "addresses")
        keys = [*more, *(key for kind in kinds for key in self._replica.under(f"{kind}/{name}/"))]
        for start in range(0, len(keys), MOST_KEYS // 2):
            await self._replica.write({}, deletes=keys[start : start + MOST_KEYS // 2])

    @property
    def allowances(self) -> tuple[Allowance, ...]:
        """Return the allowances between networks, sorted."""
        return tuple(sorted(self._allowances))

    async def allow(self, allowance: Allowance) -> None:
        """Record an allowance. Raises NotFound if a network does not exist, and Invalid if the port is not valid."""
        wanted = ("tcp", "udp", "sctp") if allowance.port else ("",)
        if allowance.protocol not in wanted or not 0 <= allowance.port <= 65535:
            raise Invalid(
                f"{allowance.port}/{allowance.protocol} is no port to allow",
                "write it as 80/tcp, or leave it out",
            )
        self.get(allowance.source)
        self.get(allowance.target)
        if allowance.source == allowance.target:
            raise Invalid(f"network {allowance.source} reaches itself already")
        await self._replica.write({_allowance_key(allowance): allowance})
        self.refresh()

    async def disallow(self, allowance: Allowance) -> None:
        """Remove an allowance; without a port, all allowances from the one network to the other.

        Raises NotFound if there is none.
        """
        gone = [
            a
            for a in self._allowances
            if (a.source, a.target) == (allowance.source, allowance.target)
            and (not allowance.port or (a.protocol, a.port) == (allowance.protocol, allowance.port))
        ]
        if not gone:
            raise NotFound(
                f"network {allowance.source} is not allowed to reach {allowance.target} in this way",
                f"`linkspan network show {allowance.source}` shows its allowances",
            )
        await self._replica.write({}, deletes=[_allowance_key(a) for a in gone])
        self.refresh()

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """All reservations, sorted."""
        return tuple(sorted(self._reservations))

    async def reserve(self, name: str, cidr: str) -> Reservation:
        """Reserve addresses of a network, and return the reservation. Raises Invalid if they are in no pool."""
        wanted = prefix(cidr).network()
        if not any(p.holds(wanted) for p in self.get(name).prefixes):
            raise Invalid(
                f"{cidr} is in no pool of network {name}", f"its pools: {', '.join(self.get(name).pools)}"
            )
        reservation = Reservation(name, str(wanted))
        await self._replica.write({_reservation_key(reservation): reservation})
        self.refresh()
        return reservation

    async def unreserve(self, name: str, cidr: str) -> None:
        """Remove a reservation. Raises NotFound if there is none."""
        reservation = Reservation(self.get(name).name, str(prefix(cidr).network()))
        if reservation not in self._reservations:
            raise NotFound(
                f"{cidr} of network {name} is not reserved", "`linkspan address list` shows reservations"
            )
        await self._replica.write({}, deletes=[_reservation_key(reservation)])
        self.refresh()


class _Taken:
    """Properties that only one network can have: pools, bridges' names, and claims."""

    def __init__(self) -> None:
        self._pools: dict[Prefix, str] = {}
        self._around: dict[Prefix, str] = {}
        """Every prefix that contains a pool, with the network's name: so one lookup for each bit finds an overlap."""
        self._words: dict[str, str] = {}

    def by(self, network: Network) -> str:
        """Return which network already has something that this one needs for itself, as text; '' if none has."""
        for one in network.prefixes:
            wider = (self._pools.get(around) for around in _around(one))
            if other := next(filter(None, wider), "") or self._around.get(one, ""):
                return f"pool {one} overlaps with a pool of network {other}"
        for word, what in self._words_of(network):
            if other := self._words.get(word, ""):
                return f"network {other} has {what} already"
        return ""

    def add(self, network: Network) -> None:
        """Record the properties of a network in force."""
        for one in network.prefixes:
            self._pools[one] = network.name
            self._around.update(dict.fromkeys(_around(one), network.name))
        self._words.update(dict.fromkeys((word for word, _ in self._words_of(network)), network.name))

    def _words_of(self, network: Network) -> Iterable[tuple[str, str]]:
        yield f"bridge/{network.bridge}", f"the bridge's name {network.bridge}"
        for claim in _claims(network):
            yield claim, claim.removeprefix("claims/")


def _around(one: Prefix) -> Iterable[Prefix]:
    return (Prefix(one.packed, length).network() for length in range(one.length + 1))


def reached_at(host: Host, one: Prefix) -> str:
    """Return the underlay address of a host if it is in the pool ``one``, '' if not, or if the host is behind a NAT."""
    return _address_in(host.underlay, one) if host.underlay is not None and not host.underlay.hidden else ""


def _address_in(underlay: Underlay, one: Prefix) -> str:
    found = underlay.address(one.family)
    return found.address if found is not None and one.holds(found) else ""


def _finished(network: Network, subnet_len: tuple[int, ...]) -> Network:
    """Return the network with its gateways and block lengths; if it does not cross hosts, a pool is one block."""
    crosses = backend(network.backend).crosses_hosts
    lengths: dict[str, int] = {}
    for p in network.prefixes:
        if not network.routed and p.length > BITS[p.family] - 1:
            raise Invalid(
                f"pool {p} has no room for a gateway and a container",
                "use a larger pool, or --opt mode=routed",
            )
        if crosses and p.length > BITS[p.family] - 2:
            raise Invalid(
                f"pool {p} has no room for a block of a host: the smallest is a /{BITS[p.family] - 2}",
                f"use a larger pool, a /{BITS[p.family] - 8} for example",
            )
        default = min(max(BLOCK_LENGTHS[p.family], p.length), BITS[p.family] - 2) if crosses else p.length
        lengths[str(p.family)] = max(lengths.get(str(p.family), 0), default)
    for length in subnet_len:
        family = _family_meant(network, length, crosses)
        lengths[family] = length
    gateways = tuple(gateway(p, network.routed).address for p in network.prefixes)
    return msgspec.structs.replace(network, gateways=gateways, subnet_len=lengths)


def _family_meant(network: Network, length: int, crosses: bool) -> str:
    """Return the family that a block length is for: IPv6 if it is above 32, or the network has IPv6 pools only."""
    families = {p.family for p in network.prefixes}
    family = 6 if length > BITS[4] or families == {6} else 4
    pools = [p for p in network.prefixes if p.family == family]
    if not crosses and any(p.length != length for p in pools):
        raise Invalid(
            f"network {network.name}: backend {network.backend} has one block, the pool itself, and no /{length}",
            "leave --subnet-len out",
        )
    if not pools:
        raise Invalid(
            f"network {network.name} has no IPv{family} pool to take blocks of /{length} from",
            f"leave {length} out of --subnet-len, or give such a pool",
        )
    if not all(p.length <= length <= BITS[family] - 2 for p in pools):
        raise Invalid(
            f"network {network.name}: blocks of /{length} do not fit its pools ({', '.join(map(str, pools))})",
            f"give a length from {max(p.length for p in pools)} to {BITS[family] - 2}",
        )
    return str(family)


def _claims(network: Network) -> list[str]:
    """Return the keys of the claims that only one network may have."""
    return [
        f"claims/{claim}" for one in network.ways for claim in backend(one.backend).claims(one)
    ]


def _allowance_key(a: Allowance) -> str:
    return f"allowances/{a.source}/{a.target}/{a.protocol}/{a.port}"


def _reservation_key(r: Reservation) -> str:
    return f"reservations/{r.network}/{r.cidr}"
