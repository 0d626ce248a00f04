"""Checks of what one record says: the shape of its values, and the bounds of its numbers.

A record that fails is named with the reason and stops no other. Its last valid version stays in force (``replica``).
Other modules compare a record with other hosts' records (``grants``, ``networks``): that result may change later.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sized
from typing import TypeVar

from linkspan.backends import BACKENDS, backend
from linkspan.core import ipam
from linkspan.core.addresses import BITS, Prefix, host_address, mac, pool, prefix
from linkspan.core.errors import Invalid
from linkspan.core.model import (
    MTUS,
    Allowance,
    Endpoint,
    Host,
    Lease,
    Network,
    Reservation,
    Underlay,
    checked_name,
)
from linkspan.core.ports import joined_sources
from linkspan.policy.model import Policy, checked
from linkspan.store import records
from linkspan.store.records import AddressRecord, BlockRecord, ClusterSettings, Common, Restored

T = TypeVar("T")

MOST_BLOCKS = 4096
"""Blocks in one lease: 16 times as many as 1,000 containers need with the smallest blocks, /30 (four addresses)."""
MOST = 64
"""Pools of a network, and addresses of a host in a network or on the underlay: usually one or a few of each family.

MACs on the underlay, too: more than the ports of a bond.
"""
LONGEST = 253
"""Bytes of a host's name: the longest domain name (RFC 1035 section 2.3.4)."""
UNDERLAY_MTUS = range(68, 65537)
"""Bytes: from RFC 791 section 3.2 to the loopback device's MTU."""
RECLAIM_AFTER = (10.0, 366 * 86400.0)
"""Seconds: with less, a live host could count as silent, because the previous release's liveness records last 7 s."""
TIMES = (0.0, 1e11)
"""Seconds since the epoch: up to the year 5138. A claim from a far future would lose against every other claim."""
REVISIONS = range(1 << 63)
"""Revisions as etcd counts them."""
GENERATIONS = range(1 << 53)
"""Integers that every JSON implementation carries exactly (RFC 8259 section 6)."""

def decode(key: str, raw: bytes, type_: type[T]) -> T:
    """Return a record as a value. Raises Invalid, with the reason, if it cannot be read or has an impossible value."""
    found = records.decode(raw, type_)
    check(key, found)
    return found


def check(key: str, value: object) -> None:
    """Raise Invalid, with the reason, if no reader would accept a record with this value."""
    if (rule := _CHECKS.get(type(value))) is None:
        return
    words = key.split("/")[1:]
    if not _takes(rule, len(words)):
        raise Invalid(f"its key has {len(words) + 1} words, which no key of a {type(value).__name__} has")
    rule(value, *words)


@functools.lru_cache(maxsize=256)  # a key may have any number of words
def _takes(rule: Callable[..., None], words: int) -> bool:
    """Return whether a check can be called with so many words of a key."""
    try:
        inspect.signature(rule).bind(None, *range(words))
    except TypeError:
        return False
    return True


def _network(network: Network, name: str) -> None:
    _same("name", network.name, name)
    checked_name(name, "network")
    _bounded("pools", network.pools)
    for way in network.ways:
        backend(way.backend).check(way)
        if backend(way.backend).completed(way, ()) != way:
            raise Invalid(f"it lacks options that every network of backend {way.backend} has")
        _within("MTU", way.mtu, range(MTUS[0], MTUS[1] + 1))
    if network.migration is not None:
        _within("the migration's number", network.migration.number, GENERATIONS)
    crosses = backend(network.backend).crosses_hosts
    if len(network.gateways) != len(network.pools):
        raise Invalid("it has not one gateway for each pool")
    for text, gateway in zip(network.pools, network.gateways, strict=True):
        one = pool(text)
        given = prefix(gateway).single()
        if not one.holds(given) and given != ipam.gateway(one, network.routed).single():
            raise Invalid(f"gateway {gateway} is not in pool {text}")
        length = network.subnet_len.get(str(one.family), -1)
        _within(f"the length of IPv{one.family} blocks", length, range(BITS[one.family] + 1))
        if crosses and not one.length <= length <= BITS[one.family] - 2:
            raise Invalid(f"blocks of /{length} do not fit pool {one}")
    if len(network.exits) != len(network.egress):
        raise Invalid("it has two egress addresses of one family")
    for exit_ in network.egress:
        host_address(exit_.address)
        _within("an egress address's number", exit_.number, GENERATIONS)
        if network.internal or any(backend(way.backend).no_exit for way in network.ways):
            raise Invalid(f"it cannot have the egress address {exit_.address}")
    parsed = network.prefixes
    for number, one in enumerate(parsed):
        if other := next((other for other in parsed[:number] if other.overlaps(one)), None):
            raise Invalid(f"its pools {other} and {one} overlap")


def _lease(lease: Lease, network: str, host: str) -> None:
    _same("network", lease.network, network)
    _same("host", lease.host, host)
    _bounded("blocks", lease.prefixes, MOST_BLOCKS)
    _bounded("addresses", lease.addresses)
    _bounded("offers", lease.endpoints)
    for text in lease.prefixes:
        _canonical(text)
    for text in lease.addresses:
        host_address(text)
    for name, offer in lease.endpoints.items():
        _within("an offer's generation", offer.generation, GENERATIONS)
        if name in BACKENDS:  # a newer agent may offer backends that this one does not have
            try:
                BACKENDS[name].check_offer(lease, offer.data)
            except Invalid as error:
                raise error.within(f"its offer for {name}") from error


def _host(host: Host, key: str) -> None:
    _same("id", host.id, key)
    if len(host.name.encode()) > LONGEST:
        raise Invalid(f"its name has {len(host.name.encode())} bytes, and may have {LONGEST}")
    _silence("withdraws", host.withdraws)
    for way in BACKENDS.values():
        way.check_host(host)
    if host.underlay is not None:
        _underlay(host.underlay)


def _underlay(underlay: Underlay) -> None:
    for texts in (underlay.addresses, underlay.advertise):
        _bounded("underlay addresses", texts)
        for text in texts:
            host_address(text)
    _bounded("underlay MACs", underlay.macs)
    for one in underlay.macs:
        mac(one)
    _within("the underlay's MTU", underlay.mtu, UNDERLAY_MTUS)
    _within("the advertised port", underlay.advertise_port, range(65536))


def _endpoint(endpoint: Endpoint, _host: str, id_: str, ifname: str) -> None:
    if endpoint.identity != (id_, ifname):
        _same("id and interface", "/".join(endpoint.identity), f"{id_}/{ifname}")
    _bounded("addresses", endpoint.addresses)
    for text in endpoint.addresses:
        host_address(text)
    for text in endpoint.gateways:
        _gateway(text)
    for port in endpoint.ports:
        for number in (port.host_port, port.port):
            _within("a published port", number, range(1, 65536))
        if joined_sources(port.sources) != port.sources:
            raise Invalid(f"the sources of its published port {port} are not as they are written in records")


_gateway = functools.lru_cache(maxsize=1024)(host_address)
"""The containers of a network have the same ones."""


def _block(block: BlockRecord, _network: str, *words: str) -> None:
    _canonical("/".join(words))
    _time(block.at)


def _address(address: AddressRecord, _network: str, text: str) -> None:
    if prefix(text).single().address != text:
        raise Invalid(f"{text} is no address as it is written in keys")
    _time(address.at)


def _allowance(allowance: Allowance, source: str, target: str, protocol: str, port: str) -> None:
    said = (allowance.source, allowance.target, allowance.protocol, str(allowance.port))
    _same("networks and port", "/".join(said), f"{source}/{target}/{protocol}/{port}")
    if allowance.protocol not in (("tcp", "udp", "sctp") if allowance.port else ("",)):
        raise Invalid(f"{allowance.port}/{allowance.protocol} is no port")
    _within("the port", allowance.port, range(65536))


def _reservation(reservation: Reservation, network: str, *words: str) -> None:
    _same("network and addresses", f"{reservation.network}/{reservation.cidr}", "/".join((network, *words)))
    _canonical(reservation.cidr)


def _policy(policy: Policy, name: str) -> None:
    _same("name", policy.name, name)
    checked(policy)


def _cluster(settings: ClusterSettings, *_key: str) -> None:
    _within("the schema that is written", settings.writes, range(1 << 31))
    _silence("reclaim_after", settings.reclaim_after)


def _restored(restored: Restored, *_key: str) -> None:
    _within("the snapshot's revision", restored.revision, REVISIONS)
    _time(restored.at)


def _common(common: Common, *_key: str) -> None:
    host = Host(id="", name="", settings=common.settings)
    for way in BACKENDS.values():
        way.check_settings(host)


def _same(what: str, said: str, key: str) -> None:
    if said != key:
        raise Invalid(f"its {what} {said!r} differs from that of its key, {key!r}")


def _bounded(what: str, values: Sized, most: int = MOST) -> None:
    if len(values) > most:
        raise Invalid(f"it has {len(values)} {what}, and may have {most}")


def _within(what: str, number: int, allowed: range) -> None:
    if number not in allowed:
        raise Invalid(f"{what} is {number}, and not from {allowed[0]} to {allowed[-1]}")


def _silence(what: str, seconds: float) -> None:
    least, most = RECLAIM_AFTER
    if seconds and not least <= seconds <= most:
        raise Invalid(f"{what} is {seconds:g} s, and neither 0 (never) nor from {least:g} to {most:g}")


def _time(at: float) -> None:
    if not TIMES[0] <= at <= TIMES[1]:
        raise Invalid(f"its time {at:g} is not from {TIMES[0]:g} to {TIMES[1]:g} seconds since the epoch")


def _canonical(text: str) -> Prefix:
    """Return a prefix in canonical form, as keys have it. Raises Invalid for any other form."""
    found = prefix(text)
    if str(found) != text or found.network() != found:
        raise Invalid(f"{text} is no prefix as keys have it: {found.network()} would be")
    return found


_CHECKS: dict[type, Callable[..., None]] = {
    Network: _network,
    Lease: _lease,
    Host: _host,
    Endpoint: _endpoint,
    BlockRecord: _block,
    AddressRecord: _address,
    Allowance: _allowance,
    Reservation: _reservation,
    Policy: _policy,
    ClusterSettings: _cluster,
    Common: _common,
    Restored: _restored,
}
"""By type: the check that is called with a value and the words of its key after the kind."""
