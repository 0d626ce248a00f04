"""The network of the tutorial's chapter 2.1, and what linkspan plans for it: pure.

The tour types this plan; a lesson shows it beside what the reader typed.
"""

from __future__ import annotations

from collections.abc import Mapping

from linkspan.backends import backend
from linkspan.core import ruleset
from linkspan.core.addresses import derived_mac, mac_text
from linkspan.core.host_view import Facts, HostView
from linkspan.core.model import Endpoint, Network, host_ifname
from linkspan.core.states.host import State
from linkspan.kernel.kinds import kinds

GATEWAY = "172.18.0.1"
NETWORK = Network(
    name="mybr0",
    pools=("172.18.0.0/16",),
    subnet_len={"4": 16},
    backend="bridge",
    gateways=(GATEWAY,),
)
CONTAINERS = {"netns_A": "172.18.0.2", "netns_B": "172.18.0.3"}


def endpoint(name: str, netns: int) -> Endpoint:
    """Return the record of one of the two containers; ``netns`` is the inode of its namespace."""
    address = CONTAINERS[name]
    return Endpoint(
        id=name,
        ifname="eth0",
        network=NETWORK.name,
        addresses=(f"{address}/16",),
        gateways=(GATEWAY,),
        mac=mac_text(derived_mac(NETWORK.name, address)),
        mtu=NETWORK.mtu,
        host_ifname=host_ifname(False, name, "eth0"),
        netns=netns,
    )


def of_network() -> list[State]:
    """Return the states of the rules and the network, for a host whose FORWARD chain drops."""
    view = HostView(networks=(NETWORK,), facts=Facts(forward_chains=frozenset({(4, "FORWARD")})))
    return [*ruleset.skeleton(Facts(), kinds()), *backend("bridge").network(view, NETWORK)]


def of_container(name: str, netns: int) -> list[State]:
    """Return the states of one of the two containers; ``netns`` is the inode of its namespace."""
    return list(backend("bridge").endpoint(NETWORK, endpoint(name, netns)))


def planned(inodes: Mapping[str, int]) -> list[State]:
    """Return all states: rules, network and containers; ``inodes`` are the containers' namespaces by name."""
    return [*of_network(), *(state for name, netns in inodes.items() for state in of_container(name, netns))]
