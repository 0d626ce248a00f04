"""Networks of the cluster: which are in force on this host, and the writes that make, turn and delete one."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

import msgspec

from linkspan.backends import backend
from linkspan.core.addresses import Prefix
from linkspan.core.errors import Conflict, Invalid, NotFound, closest
from linkspan.core.model import Endpoint, Host, Network, Underlay
from linkspan.store import records, validation
from linkspan.store.records import GONE
from linkspan.store.replica import Replica
from linkspan.store.request import MOST_KEYS

log = logging.getLogger("linkspan.cluster.networks")


def crosses(network: Network) -> bool:
    """Return whether a network crosses hosts, so that its addresses come from hosts' blocks."""
    return backend(network.backend).crosses_hosts


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
        self._tokens: dict[str, object] = {}
        self._ordered: tuple[Network, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Adopt the replica's networks, except those that contradict others or this host's own routes."""
        self._every = {network.name: network for network in self._replica.read("networks/", Network).values()}
        self._networks, self.withheld = self._in_force()
        self._replica.withhold(f"networks/{name}" for name in self.withheld)
        self._tokens = {name: self._tokens.get(name) or object() for name in self._networks}
        self._ordered = tuple(self._networks[name] for name in sorted(self._networks))

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
                if self._replica.known_revision(key) < written and (address := host.within(one)):
                    return f"pool {one} covers {address}, the underlay address of host {host.name}"
            if self._underlay is not None and (address := self._underlay.within(one)):
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
                if address := host.within(one):
                    return f"its underlay address {address} is in pool {one} of network {name}"
        return ""

    def all(self) -> tuple[Network, ...]:
        """Return the networks in force on this host, in the order of their names."""
        return self._ordered

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
            what, hint = f"network {name!r} does not exist (there are: {known})", closest(name, self._networks, look)
            raise NotFound(what, hint, records=f"networks/{name}") from None

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
        allowed = [key for key in self._replica.keys_under("allowances/") if name in key.split("/")[1:3]]
        reserved = self._replica.keys_under(f"reservations/{name}/")
        known = next((network for network in self.every() if network.name == name), None) or self.get(name)
        keys = [f"networks/{name}", *(key for key in _claims(known) if key in self._replica.records)]
        await self._replica.write({}, deletes=keys)  # from here on nobody claims anything in it
        self.refresh()
        await self._clear(name, [*allowed, *reserved])

    async def _clear(self, name: str, more: Iterable[str] = ()) -> None:
        """Delete the claims in a deleted network, and the keys of ``more``, in as many transactions as they need."""
        kinds = ("leases", "blocks", "addresses")
        keys = [*more, *(key for kind in kinds for key in self._replica.keys_under(f"{kind}/{name}/"))]
        for start in range(0, len(keys), MOST_KEYS // 2):
            await self._replica.write({}, deletes=keys[start : start + MOST_KEYS // 2])


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


def _claims(network: Network) -> list[str]:
    """Return the keys of the claims that only one network may have."""
    return [f"claims/{claim}" for one in network.ways for claim in backend(one.backend).claims(one)]
