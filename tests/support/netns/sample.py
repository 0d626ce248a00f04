"""Networks and endpoints for tests, and their states as the backends give them."""

from __future__ import annotations

from collections.abc import Iterable

from linkspan.backends import backend
from linkspan.core.addresses import derived_mac, mac_text, prefix
from linkspan.core.host_view import Facts, HostView
from linkspan.core.ipam import gateway
from linkspan.core.model import Allowance, Endpoint, Network, Port, host_ifname
from linkspan.core.ruleset import skeleton
from linkspan.core.states.host import State
from linkspan.endpoints import multihoming
from linkspan.kernel.kinds import kinds
from support.netns.world import World

MTU = 1400


def network(name: str = "demo", number: int = 77, *, routed: bool = False, internal: bool = False) -> Network:
    """Describe a dual-stack network whose pools have the number."""
    pools = (f"10.{number}.0.0/24", f"fd{number}::/64")
    return Network(
        name=name,
        pools=pools,
        subnet_len={"4": 24, "6": 64},
        backend="bridge",
        options={"mode": "routed"} if routed else {},
        mtu=MTU,
        internal=internal,
        gateways=tuple(str(gateway(prefix(pool), routed)) for pool in pools),
    )


def endpoint(
    world: World, name: str, network: Network, number: int, ports: tuple[Port, ...] = (), nth: int = 0
) -> Endpoint:
    """Describe the container in namespace ``name``, with the ``number``-th address of each pool, on its ethN."""
    addresses = [pool.at(number) for pool in network.prefixes]
    return Endpoint(
        id=f"{name}-id",
        name=name,
        ifname=f"eth{nth}",
        network=network.name,
        host="h1",
        addresses=tuple(str(a.single() if network.routed else a) for a in addresses),
        gateways=network.gateways,
        mac=mac_text(derived_mac(name, network.name)),
        mtu=MTU,
        host_ifname=host_ifname(network.routed, f"{name}-id", f"eth{nth}"),
        metric=nth,
        ports=ports,
        netns=world.inode(name),
        netns_path=world.path(name),
    )


def states(
    networks: Iterable[Network],
    endpoints: Iterable[Endpoint],
    allowances: tuple[Allowance, ...] = (),
    facts: Facts | None = None,
) -> list[State]:
    """Return everything that the host should have."""
    view = HostView(tuple(networks), allowances, facts or Facts())
    by_name = {n.name: n for n in view.networks}
    found = list(skeleton(view.facts, kinds()))
    for one in view.networks:
        found += backend(one.backend).network(view, one)
    inside: dict[int, list[tuple[Network, Endpoint]]] = {}
    for container in endpoints:
        home = by_name[container.network]
        found += backend(home.backend).endpoint(home, container)
        inside.setdefault(container.netns, []).append((home, container))
    for homes in inside.values():
        found += multihoming.container_states(homes)
    return list(dict.fromkeys(found))
