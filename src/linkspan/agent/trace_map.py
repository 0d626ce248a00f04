"""Trace map: the hosts, endpoints and addresses that a trace over the whole cluster starts from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

from linkspan.backends.sdn import backend as sdn
from linkspan.cluster.endpoint_records import EndpointRecords
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.core.addresses import Prefix, mac, prefix
from linkspan.core.model import Endpoint, Host, Lease, Network
from linkspan.diagnose.trace.hops import Gateway, Map, Other
from linkspan.diagnose.trace.packet import Packet


def gateways(networks: Iterable[Network]) -> tuple[Gateway, ...]:
    """Return the gateways that are switches of an underlay, for each way by which the networks receive packets."""
    steered = ((way, sdn.gateway(way)) for network in networks for way in network.ways)
    return tuple(
        Gateway(way.prefixes, tuple(one.packed for one in found), mac(way.options["mac"]))
        for way, found in steered
        if found
    )


def others(
    hosts: Iterable[Host], leases: Iterable[Lease], endpoints: Iterable[tuple[str, Endpoint]]
) -> dict[str, Other]:
    """Return the hosts by id, in the form that a trace needs."""
    addresses: dict[str, dict[str, tuple[bytes, ...]]] = {}
    held: dict[str, list[Endpoint]] = {}
    for lease in leases:
        own = tuple(prefix(text).packed for text in lease.addresses)
        addresses.setdefault(lease.host, {})[lease.network] = own
    for host_id, endpoint in endpoints:
        held.setdefault(host_id, []).append(endpoint)
    return {
        host.id: Other(
            host.name, {"": _underlay(host), **addresses.get(host.id, {})}, tuple(held.get(host.id, ()))
        )
        for host in hosts
    }


def _underlay(host: Host) -> tuple[bytes, ...]:
    if host.underlay is None:
        return ()
    return tuple(prefix(text).packed for text in (*host.underlay.advertise, *host.underlay.addresses))


class TraceMap:
    """The map of one host's traces; ``silent`` returns why peers do not answer through a network."""

    def __init__(
        self,
        hosts: Hosts,
        leases: Leases,
        networks: Networks,
        endpoints: Mapping[tuple[str, str], Endpoint],
        endpoint_records: EndpointRecords,
        silent: Callable[[], Awaitable[Mapping[tuple[str, str, int], str]]],
    ) -> None:
        self._hosts = hosts
        self._leases = leases
        self._networks = networks
        self._endpoints = endpoints
        self._endpoint_records = endpoint_records
        self._silent = silent

    async def known(self, *words: str) -> Map:
        """Return the map of the known endpoints: complete ones that ``words`` may mean, and sketches of other hosts'.

        A sketch says which host has an address. At its two ends a trace needs the complete record.
        """
        silent = await self._silent()
        own = self._hosts.here
        hosts = [host for host in self._hosts.all().values() if host.id != own.id]
        networks = {network.name: network for network in self._networks.all()}
        leases = [lease for lease in self._leases.all() if lease.network in networks]
        counting = [self._leases.grant(networks[lease.network], lease).lease for lease in leases]
        found = others(hosts, counting, await self._endpoint_records.met(*words))
        peers = {address: id_ for id_, other in found.items() for address in other.addresses[""]}
        keys = {
            public: host.id for host in hosts for public in (*host.keys.values(), *host.next_keys.values())
        }
        here = tuple(self._endpoints.values())
        steered = gateways(networks.values())
        return Map(own.name, here, networks, peers, own.underlay, own.id, found, keys, silent, steered)

    def strange(self, packet: Packet) -> list[str]:
        """Return the packet's addresses in pools that no known endpoint has: the caller asks the store for them."""
        pools = [pool for network in self._networks.all() for pool in network.prefixes]
        own = {one.packed for endpoint in self._endpoints.values() for one in endpoint.prefixes}
        found = []
        for address in (packet.source, packet.target):
            single = Prefix(address, len(address) * 8)
            if address and address not in own and any(pool.holds(single) for pool in pools):
                found += [] if self._endpoint_records.keeps(single) else [single.address]
        return found
