"""Plans of networks: the record that a user's request makes, or the reason why it is refused.

Pure functions of what is known at that moment. Two hosts may plan the same network: then the store accepts one of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from linkspan.backends import BACKENDS, backend, migration
from linkspan.core import fast_path
from linkspan.core.addresses import BITS, Prefix, host_address, pool, prefix
from linkspan.core.backend_contract import Backend
from linkspan.core.errors import Conflict, Invalid, LinkspanError
from linkspan.core.ipam import gateway
from linkspan.core.model import (
    MTUS,
    Egress,
    Host,
    Ipam,
    Lease,
    Network,
    NetworkPolicy,
    Underlay,
    checked_name,
)
from linkspan.core.namesakes import meant, missing

BLOCK_LENGTHS = {4: 24, 6: 64}
"""Default lengths of blocks, by family: 253 containers in an IPv4 block; IPv6's usual subnet (RFC 4291 2.5.1)."""


_OUTER = "choose a free address of a subnet that the hosts' own links have"


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
    policy: NetworkPolicy = "default-allow"


class InUse(msgspec.Struct, frozen=True):
    """Prefixes that a network must not overlap: those of the cluster's networks and hosts, and this host's own routes.

    ``routes`` has them by destination, with a text such as "dev eth0".
    """

    networks: tuple[Network, ...] = ()
    hosts: Collection[Host] = ()
    routes: Mapping[Prefix, str] = {}


def planned(
    request: NetworkRequest, in_use: InUse, underlay: Underlay | None, uplink_mtu: int
) -> Network:
    """Check a request, and return the network that it would make. Raises Invalid or Conflict.

    ``uplink_mtu`` (bytes) counts if there is no underlay.
    """
    checked_name(request.name, "network")
    if any(network.name == request.name for network in in_use.networks):
        raise Conflict(f"network {request.name} exists", f"linkspan network show {request.name}")
    name, alone = request.backend, len(in_use.hosts) <= 1
    options = dict(request.options)
    if name == "auto":
        name = "bridge" if alone else "vxlan"
        wishes = {} if alone or options.get(fast_path.OPTION) == "true" else {"direct": "true"}
        options = wishes | options
    way = backend(name)
    _check_bridge(Network(name=request.name, pools=(), subnet_len={}, backend=name), in_use.networks)
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
        policy=request.policy,
    )
    way.check(network)
    _check_fast(network, in_use.hosts)
    _check_exposure(network)
    _check_mtu(network)
    _check_overlap(network.name, network.prefixes, in_use)
    return _finished(way.completed(network, _ways(in_use.networks)), request.subnet_len)


def enlarged(
    network: Network, add_pools: Iterable[str], mtu: int, options: Mapping[str, str], in_use: InUse
) -> Network:
    """Check a change, and return the changed network; an ``mtu`` of 0 means no change. Raises Invalid or Conflict."""
    if network.migration is not None:
        raise Conflict(
            f"network {network.name} migrates to {network.migration.backend}, and cannot be changed meanwhile",
            f"wait until it is done; `linkspan network show {network.name}` shows the progress",
        )
    added = tuple(pool(text) for text in add_pools)
    if options and {**network.options, **options} != network.options:
        raise Invalid(
            f"network {network.name}: options of backend {network.backend} cannot change while it exists",
            "migrate it to another backend and back with the new ones: "
            f"`linkspan network migrate {network.name} --backend BACKEND --opt ...`; or create a second network",
        )
    _check_overlap("", added, in_use)
    changed = msgspec.structs.replace(network, pools=(*network.pools, *map(str, added)), mtu=mtu or network.mtu)
    _check_mtu(changed)
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


def left_by(network: Network, texts: Sequence[str], in_use: InUse) -> Network:
    """Return the network with these egress addresses, ``IP[,host=NAME]`` each; with none if there is no text.

    Raises Invalid, Conflict or NotFound.
    """
    number = 1 + max((one.number for one in network.egress), default=0)
    exits = tuple(msgspec.structs.replace(_exit(network, text, in_use), number=number) for text in texts)
    changed = msgspec.structs.replace(network, egress=exits)
    if not exits:
        return changed
    if len(changed.exits) < len(exits):
        raise Invalid(f"network {network.name}: two egress addresses of one family", "give one of each at most")
    if network.internal:
        raise Invalid(f"network {network.name} is internal: nothing leaves it", "leave --egress out")
    if not network.masquerade:
        raise Invalid(
            f"network {network.name} keeps its containers' addresses outside (--no-masquerade)", "leave --egress out"
        )
    if network.migration is not None:
        raise Conflict(
            f"network {network.name} migrates to {network.migration.backend}, and gets no egress address meanwhile",
            f"wait until it is done; `linkspan network show {network.name}` shows the progress",
        )
    _check_exits(network, exits, in_use)
    return changed


def _check_exits(network: Network, exits: Iterable[Egress], in_use: InUse) -> None:
    """Refuse addresses that the network, or another one, cannot leave by."""
    if why := backend(network.backend).no_exit:
        able = ", ".join(name for name, way in BACKENDS.items() if not way.no_exit)
        raise Invalid(
            f"network {network.name} of backend {network.backend} cannot have an egress address: {why}",
            f"use a network of another backend: {able}",
        )
    if old := sorted(host.name or host.id for host in in_use.hosts if not host.egresses):
        raise Conflict(
            f"network {network.name}: the agent of host {', '.join(old)} is of a version without egress addresses",
            "upgrade it first: linkspan upgrade",
        )
    for one in exits:
        address = one.prefix
        if not any(pool.family == address.family for pool in network.prefixes):
            raise Invalid(
                f"network {network.name} has no pool of IPv{address.family}, so nothing could leave it by "
                f"{address.address}",
                f"give an address of the family of its pools, {', '.join(network.pools)}",
            )
        for other in in_use.networks:
            if any(pool.holds(address) for pool in other.prefixes):
                raise Conflict(f"egress address {address.address} is in a pool of network {other.name}", _OUTER)
            if other.name != network.name and any(exit_.prefix == address for exit_ in other.egress):
                raise Conflict(f"egress address {address.address} is network {other.name}'s", _OUTER)
        for host in in_use.hosts:
            own = (*host.underlay.addresses, *host.underlay.advertise) if host.underlay else ()
            if any(prefix(text).single() == address for text in own):
                raise Conflict(f"egress address {address.address} is host {host.name}'s own", _OUTER)


def _exit(network: Network, text: str, in_use: InUse) -> Egress:
    address, comma, more = text.partition(",")
    key, _, name = more.partition("=")
    if comma and (key != "host" or not name):
        raise Invalid(f"network {network.name}: --egress {text!r} is not understood", "write 192.0.2.50,host=h1")
    if "/" in address:
        raise Invalid(f"network {network.name}: --egress {text} has a prefix length", "give the address alone")
    try:
        own = host_address(address).single().address
    except Invalid as error:
        raise error.within(f"network {network.name}: --egress {text}") from error
    called = {host.id: host.name for host in in_use.hosts}
    id_ = meant(called, name) if name else ""
    if name and not id_:
        raise missing(called, name)
    if any(host.id == id_ and host.settings.get("drained") for host in in_use.hosts):
        raise Conflict(
            f"network {network.name}: host {name} is drained, so it holds no egress address",
            f"name another host, or: linkspan host undrain {name}",
        )
    return Egress(own, id_)


def migrated(
    network: Network,
    name: str,
    options: Mapping[str, str],
    networks: Iterable[Network],
    here: Underlay,
    leases: Iterable[Lease],
    hosts: Iterable[Host],
) -> Network:
    """Check a migration to backend ``name``, or its reversal, and return the record of its start.

    ``networks`` and ``hosts`` are all of the cluster, ``leases`` those of the network. Raises Invalid or Conflict.
    """
    if network.egress and (why := backend(name).no_exit):
        raise Invalid(
            f"network {network.name} has an egress address, which it cannot have with backend {name}: {why}",
            f"remove it first: linkspan network update {network.name} --egress none",
        )
    if network.migration is not None and name == network.backend:
        migration.check_back(network, options)
        return migration.turned(network, leases)
    migration.check(network, name)
    way = backend(name)
    new = msgspec.structs.replace(network, backend=name, options={**_kept(way, network), **options})
    way.check(new)
    _check_fast(new, hosts)
    others = _ways(one for one in networks if one.name != network.name)
    changed = migration.started(network, way.completed(new, others), here, leases)
    for one in changed.ways:
        _check_mtu(one)
    return changed


def _ways(networks: Iterable[Network]) -> list[Network]:
    """Return the networks as they are, and the migrating ones also as they will be."""
    return [one for network in networks for one in network.ways]


def _kept(way: Backend, network: Network) -> dict[str, str]:
    """Return the network's options that the backend ``way`` accepts too: a migration keeps them."""
    found = {}
    for key, value in network.options.items():
        with contextlib.suppress(LinkspanError):
            way.check(msgspec.structs.replace(network, backend=way.name, options={key: value}))
            found[key] = value
    return found


def _check_bridge(network: Network, others: Iterable[Network]) -> None:
    for other in others:
        if other.bridge == network.bridge:
            raise Conflict(
                f"network {network.name} would share its bridge's name with network {other.name}",
                "choose another name",
            )


def _check_fast(network: Network, hosts: Iterable[Host]) -> None:
    """Refuse a fast network while agents would take its record for invalid."""
    old = sorted(host.name or host.id for host in hosts if not host.hastens) if fast_path.is_fast(network) else []
    if old:
        raise Conflict(
            f"network {network.name}: the agent of host {', '.join(old)} is of a version without fast=true",
            "upgrade it first: linkspan upgrade",
        )


def _check_exposure(network: Network) -> None:
    if network.expose and network.on_host:
        raise Invalid(
            f"network {network.name} shares the host's network: there is nothing to expose",
            "every runtime has that itself: start the container with its option for it, such as --network host",
        )


def _check_mtu(network: Network) -> None:
    if not MTUS[0] <= network.mtu <= MTUS[1]:
        raise Invalid(f"network {network.name}: MTU {network.mtu} is not from {MTUS[0]} to {MTUS[1]}")


def _check_overlap(name: str, pools: tuple[Prefix, ...], in_use: InUse) -> None:
    """Refuse pools that overlap with each other, with routes or underlays, or with a network of another name."""
    for number, one in enumerate(pools):
        for other in pools[number + 1 :]:
            if one.overlaps(other):
                raise Invalid(f"pools {one} and {other} overlap", "leave one out")
        for network in in_use.networks:
            for other in network.prefixes:
                if network.name != name and one.overlaps(other):
                    raise Conflict(
                        f"pool {one} overlaps with pool {other} of network {network.name}",
                        "choose another prefix; `linkspan network list` shows those in use",
                    )
        for destination, way in in_use.routes.items():
            if destination.length and one.overlaps(destination):
                raise Conflict(
                    f"pool {one} overlaps with this host's route {destination} {way}",
                    "choose a prefix that the host does not route, `ip route` shows them",
                )
        for host in in_use.hosts:
            if address := host.within(one):
                raise Conflict(
                    f"pool {one} covers {address}, the underlay address of host {host.name}",
                    "choose a prefix that no host's underlay is in",
                )


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
