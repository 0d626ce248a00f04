"""Networks of one host and their endpoints, as an attach describes them."""

from __future__ import annotations

from collections.abc import Iterable

from linkspan.core.addresses import prefix
from linkspan.core.ipam import gateway
from linkspan.core.model import AttachRequest, Endpoint, Network, Port
from linkspan.endpoints.build import described

NETNS = 4026532000


def network(name: str, *pools: str, routed: bool) -> Network:
    """Return a network of one host."""
    return Network(
        name=name,
        pools=pools,
        subnet_len={str(prefix(pool).family): prefix(pool).length for pool in pools},
        backend="bridge",
        options={"mode": "routed"} if routed else {},
        gateways=tuple(str(gateway(prefix(pool), routed)) for pool in pools),
    )


def endpoint(of: Network, *addresses: str, id_: str = "c1", ports: Iterable[Port] = ()) -> Endpoint:
    """Return an endpoint as an attach describes it."""
    request = AttachRequest(id=id_, network=of.name, ifname="eth0", ports=tuple(ports))
    return described(request, of, [prefix(a) for a in addresses], NETNS, "/run/netns/c1", 7, "h1")
