"""Multihoming: the states of a container that follow from all its interfaces, above all the routing policy.

An endpoint's own states (its backend's) are those that it needs whatever else its container has: addresses, a
route to each pool of its network, a default route whose metric says which network is the first. What depends
on the other interfaces is here. It is one source of states for each container.

A packet without a source address is routed by the main table: to a network's pool by that network's
interface, anywhere else by the default route with the lowest metric. The kernel then gives it that
interface's address. A packet that has a source address must leave by the interface of that address, because
the guard of any other interface drops it. Three groups of rules do that, in this order (the kernel's own rule
for local addresses comes before them):

1. from ADDRESS: the interface's own table, but for its default route. It has the pools of all the container's networks
   by this interface: an answer to a peer in another network of the container leaves by the interface of the request.
2. from anywhere: the main table, except its default route: the container's own routes stay in force.
3. from ADDRESS: the interface's own table with its default route.

A single interface needs none of this if it has the first default route, so most containers have no rule.
Docker's always have them: the engine may give the default route to a network of another driver without
notice.

An internal network leads only to itself: its default route comes after all others (``INTERNAL``). It exists
even if it is the only one, so that forbidden connections are refused at once.

Published ports follow from all interfaces, too (``published_ports``).

What could go wrong, and why it does not:

- *A reply to a peer in the container's other network leaves by that network's interface, and the guard drops it.*
  Each address has a table with the pools of all the container's networks by its own interface. The rules that lead
  there come before the main table's.
- *Routes that the container made itself no longer count.* The main table comes between an address's pools and its
  default route.
- *An internal network that was attached first takes the default route.* Its default route has a metric behind all
  others (``INTERNAL``). Docker gets no gateway for such a network, and the agent adds that route.
- *Docker has moved the interface and not yet configured it.* The agent waits until the interface is up. Its routes
  are `onlink`, so they need no other route.
- *Another interface of the container leads to the same gateway.* IPv6 takes no `onlink` then, and needs none
  (``is_onlink``).
- *The agent has already added a route that Docker wants to add, and Docker refuses to start the container.* Routes of
  Docker's endpoints have metrics from 1 on, and Docker's have 0.
- *Two Docker endpoints have metric 0 and share one table (endpoints of an agent that knew no tables).* ``recovery``
  gives them new ranks.
- *An agent is killed between two steps, and the rule of an address stays.* At its start the agent removes our rules
  and tables that no endpoint wants.

Rejected: rules alone, with the pools in the main table (a reply to a peer in another network of the container
leaves by the wrong interface); one rule for each pair of an address and a pool (they grow by the square, and
the kernel goes through rules one after the other, but looks routes up in a trie); marks by nftables in the
container (its owner's).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from linkspan.backends.bridge import gateways, is_onlink, on_link
from linkspan.core.addresses import whole
from linkspan.core.model import Endpoint, Network
from linkspan.core.states.host import PolicyRule, Route, State
from linkspan.endpoints import published_ports

TABLE = 76000
"""Number of the first container table: an interface's table is this plus the metric of its default routes."""

OWN_POOLS, MAIN, OWN_DEFAULT = 32000, 32001, 32002
"""Priorities of the three groups: before the main table's rule, 32766, and after those that users choose."""

INTERNAL = 1 << 16
"""The first metric of internal networks' default routes: more than others have (of DHCP, of other runtimes)."""

LAST = 1 << 30
"""Metrics from here on are not ours: a container can give its own default routes any metric."""

Home = tuple[Network, Endpoint]


def source(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the name under which the states of the endpoint's container are desired."""
    return ("container", str(endpoint.netns) if endpoint.netns else "/".join(endpoint.identity))


def mates(endpoint: Endpoint, every: Iterable[Endpoint]) -> list[Endpoint]:
    """Return the other endpoints of the endpoint's container; none if its namespace is not known (yet)."""
    if not endpoint.netns:
        return []
    return [e for e in every if e.namespace == endpoint.namespace and e.identity != endpoint.identity]


def first_metric(network: Network, endpoint: Endpoint) -> int:
    """Return the metric of the endpoint's routes in a container that has no others yet.

    Docker uses 0 in its own containers: it does not start one if a route that it adds exists already.
    """
    if network.internal:
        return INTERNAL
    return 1 if endpoint.delivered else 0


def container_states(homes: Sequence[Home]) -> Iterable[State]:
    """Return the states that the interfaces of one container need together."""
    inside = [home for home in homes if home[1].netns]
    if len(inside) > 1 or any(endpoint.metric for _, endpoint in inside):
        for network, endpoint in inside:
            yield from _table(network, endpoint, inside)
            yield from _rules(endpoint)
    yield from published_ports.states(homes)


def _table(network: Network, endpoint: Endpoint, homes: Sequence[Home]) -> Iterable[Route]:
    """Return the interface's own table: all pools of the container's networks, and the default, by this interface."""
    table, device = TABLE + endpoint.metric, endpoint.ifname
    for family, gateway in gateways(network, endpoint).items():
        pools = {pool: None for home, _ in homes for pool in home.prefixes if pool.family == family}
        for target in (*pools, whole(family)):
            direct = on_link(network, endpoint, target)
            yield Route(
                target,
                device,
                b"" if direct else gateway.packed,
                netns=endpoint.netns,
                onlink=not direct and is_onlink(endpoint, family),
                mtu=endpoint.path_mtu,
                table=table,
            )


def _rules(endpoint: Endpoint) -> Iterable[PolicyRule]:
    netns, table = endpoint.netns, TABLE + endpoint.metric
    for address in endpoint.prefixes:
        yield PolicyRule(netns, OWN_POOLS, address.single(), table, specific=True)
        yield PolicyRule(netns, MAIN, whole(address.family), specific=True)
        yield PolicyRule(netns, OWN_DEFAULT, address.single(), table)
