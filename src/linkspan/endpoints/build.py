"""Build an endpoint: check a request, and add the values allocated to it (pure)."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import msgspec

from linkspan.core import bandwidth
from linkspan.core.addresses import Prefix, derived_mac, mac, mac_text
from linkspan.core.errors import Invalid
from linkspan.core.model import (
    AttachRequest,
    Bandwidth,
    Endpoint,
    Network,
    Port,
    checked_ifname,
    checked_name,
    host_ifname,
)
from linkspan.core.ports import spelled

LARGEST_RECORD = 768 << 10
"""Bytes of an endpoint's labels and ports in its record: a store takes 1 MiB at once (`store/request.py`). These are
12,000 ports, or three times what Kubernetes takes as annotations of a pod (256 KiB)."""


def checked(request: AttachRequest) -> AttachRequest:
    """Return a request that may be carried out: its MAC and its ports' addresses as records have them, its limits.

    Every request comes through here first, whoever asks: users by the API, CNI, Podman or Docker. What follows relies
    on its names, numbers and MAC. Raises Invalid.
    """
    checked_name(request.id, "container id")
    if request.name:
        checked_name(request.name, "container name")
    _check_numbers(request)
    try:
        check_size(request.labels, request.ports)
        if request.ifname:
            checked_ifname(request.ifname)
        return msgspec.structs.replace(
            request,
            mac=mac_text(mac(request.mac)) if request.mac else "",
            ports=tuple(map(spelled, request.ports)),
            port_ranges=tuple(map(spelled, request.port_ranges)),
            bandwidth=_limits(request),
        )
    except Invalid as error:
        raise error.within(f"attach {request.name or request.id} to {request.network}") from error


def _limits(request: AttachRequest) -> Bandwidth | None:
    """Return the limits that a request gives, by themselves or by a label. Raises Invalid if it gives both."""
    given, found = request.bandwidth, bandwidth.followed({}, request.labels, request.bandwidth)
    if given is not None and found is not None and found != given:
        raise Invalid(
            f"its bandwidth is {bandwidth.spelled(given)}, and {bandwidth.spelled(found)} by label {bandwidth.LABEL}",
            "give one of them",
        )
    return found


def _check_numbers(request: AttachRequest) -> None:
    """Refuse, by Invalid, ports and limits out of range."""
    numbers = [n for p in request.ports for n in (p.host_port, p.port)]
    numbers += [n for r in request.port_ranges for n in (r.first, r.last, r.port)]
    for number in numbers:
        if not 1 <= number <= 65535:
            raise Invalid(f"{number} is not a port", "ports are 1 to 65535")
    for wish in request.port_ranges:
        if wish.last < wish.first:
            raise Invalid(
                f"the range of ports {wish.first}-{wish.last} goes backwards", "write the lower port first"
            )
    if request.bandwidth is not None:
        bandwidth.check(request.bandwidth)


def check_size(labels: Mapping[str, str], ports: Sequence[Port]) -> None:
    """Refuse, by Invalid, labels and ports that no store takes in one record."""
    if (size := len(msgspec.json.encode((labels, ports)))) > LARGEST_RECORD:
        raise Invalid(
            f"its labels and published ports take {size >> 10} KiB, and may take {LARGEST_RECORD >> 10} KiB",
            "publish fewer ports, each of which takes about 64 bytes, or give shorter labels",
        )


def check_ports(network: Network, endpoint: Endpoint) -> None:
    """Refuse, by Invalid, published ports that the network cannot have."""
    if endpoint.ports and network.internal:
        raise Invalid(f"network {network.name} is internal: it publishes no ports", "leave --publish out")
    if any(port.host_ip == "::1" for port in endpoint.ports) and not network.on_host:
        raise Invalid(
            "a port cannot be published at ::1: IPv6 has no route_localnet", "publish it at 127.0.0.1"
        )


def described(
    request: AttachRequest,
    network: Network,
    addresses: Sequence[Prefix],
    netns: int,
    netns_path: str,
    cookie: int,
    host: str,
    delivered: str = "",
    taken: Container[str] = (),
) -> Endpoint:
    """Return the endpoint of a checked request with its allocated addresses; ``netns`` 0 is the host's own.

    ``delivered`` as in Endpoint; ``taken`` are MACs that containers chose themselves, so that no address
    leads to them.
    """
    hardware = name = ""
    gateways: tuple[str, ...] = ()
    mtu, path_mtu = network.mtus if netns or delivered else (0, 0)
    if netns or delivered:
        hardware = request.mac or _derived(network, addresses[0], taken)
        name = host_ifname(network.routed, request.id, delivered or request.ifname)
        gateways = tuple(next(g.address for pool, g in network.pairs if pool.holds(a)) for a in addresses)
    return Endpoint(
        id=request.id,
        ifname=request.ifname,
        name=request.name,
        network=network.name,
        host=host,
        addresses=tuple(str(on_interface(network, address)) for address in addresses),
        gateways=gateways,
        mac=hardware,
        mtu=mtu,
        path_mtu=path_mtu,
        host_ifname=name,
        ports=request.ports,
        labels=request.labels,
        netns=netns,
        netns_path=netns_path,
        netns_cookie=cookie,
        bandwidth=request.bandwidth,
        delivered=delivered,
        engine=request.engine,
    )


def _derived(network: Network, address: Prefix, taken: Container[str]) -> str:
    """Return the MAC derived from an address, or another one if a container has chosen exactly that MAC."""
    seed: tuple[str, ...] = (network.name, address.address)
    while (found := mac_text(derived_mac(*seed))) in taken:
        seed = (*seed, "taken")
    return found


def resized(network: Network, endpoint: Endpoint) -> Endpoint:
    """Return an endpoint with the MTU of its network, or the smaller one that a later plugin set."""
    mtu, path_mtu = network.mtus
    mtu = min(mtu, endpoint.tuned_mtu or mtu)
    return msgspec.structs.replace(endpoint, mtu=mtu, path_mtu=path_mtu if path_mtu < mtu else 0)


def tuned(network: Network, endpoint: Endpoint, hardware: str, mtu: int) -> Endpoint:
    """Return an endpoint whose MAC and MTU a later plugin of its chain has changed.

    An MTU above the network's is not adopted: the bridge or tunnel would drop such large packets.
    """
    return resized(
        network,
        msgspec.structs.replace(
            endpoint,
            mac=hardware,
            born_mac=endpoint.born_mac or (endpoint.mac if hardware != endpoint.mac else ""),
            tuned_mtu=mtu if mtu < network.mtus[0] else 0,
        ),
    )


def on_interface(network: Network, address: Prefix) -> Prefix:
    """Return an address with its length on the container's interface: the pool's on a bridge."""
    if network.routed:
        return address.single()
    pool = next(pool for pool in network.prefixes if pool.holds(address.single()))
    return Prefix(address.packed, pool.length)
