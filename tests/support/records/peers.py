"""Start of the tables of the backends that cross hosts: this host, one peer, one network."""

from __future__ import annotations

from linkspan.core.addresses import prefix
from linkspan.core.host_view import Facts, HostView, Peer
from linkspan.core.model import Host, Lease, Network, Offer, Underlay
from linkspan.core.program import Program

HERE = Underlay("eth0", ("192.0.2.1/24", "fd02::1/64"))
THERE = Underlay("eth0", ("192.0.2.2/24", "fd02::2/64"))
ONLY_6 = Underlay("eth0", ("fd02::1/64",))
POOLS = {4: "10.77.0.0/16", 6: "fd77::/48"}
BLOCKS = {4: "10.77.{}.0/24", 6: "fd77:0:0:{}::/64"}


def network(backend: str, families: tuple[int, ...] = (4,), mtu: int = 1500, **options: str) -> Network:
    """Describe network ``demo``."""
    gateways = {4: "10.77.0.1/32", 6: "fd77::1/128"}
    return Network(
        name="demo",
        pools=tuple(POOLS[f] for f in families),
        subnet_len={"4": 24, "6": 64},
        backend=backend,
        options=options,
        mtu=mtu,
        gateways=tuple(gateways[f] for f in families),
    )


def lease(number: int, network: Network, offer: dict[str, str] | None = None) -> Lease:
    """Describe host N's lease, with an offer of the network's backend where one is given."""
    blocks = [prefix(BLOCKS[p.family].format(number)) for p in network.prefixes]
    return Lease(
        network="demo",
        host=f"id{number}",
        prefixes=tuple(map(str, blocks)),
        addresses=tuple(b.address for b in blocks),
        endpoints={} if offer is None else {network.backend: Offer(offer)},
    )


def view(network: Network, underlay: Underlay | None = HERE, programs: tuple[Program, ...] = ()) -> HostView:
    """Return what host 1 sees."""
    host = Host(id="id1", name="h1", underlay=underlay)
    return HostView((network,), facts=Facts(programs=programs), host=host, leases=(lease(1, network),))


def peer(
    network: Network,
    offer: dict[str, str] | None,
    *,
    on_link: bool = True,
    exact: tuple[str, ...] = (),
    underlay: Underlay = THERE,
) -> Peer:
    """Return host 2."""
    host = Host(id="id2", name="h2", underlay=underlay)
    return Peer(host, lease(2, network, offer), "eth0", on_link, tuple(prefix(e) for e in exact))
