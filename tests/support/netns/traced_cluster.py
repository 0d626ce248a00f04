"""Traces over the hosts of a cluster without agents: each host's part is walked in its own namespace."""

from __future__ import annotations

from collections.abc import Mapping

from linkspan.agent.trace_map import gateways, others
from linkspan.core.model import Network
from linkspan.diagnose.trace.hops import Map
from linkspan.diagnose.trace.parts import Entry, Part
from linkspan.diagnose.trace.result import Local
from linkspan.diagnose.trace.trace import Trace, Unanswered, run, trace
from linkspan.kernel.io.namespaces import Namespaces
from support.netns.overlay import Cluster, OverlayHost


def known(cluster: Cluster, here: OverlayHost, unanswered: str = "") -> Map:
    """Return what a host's agent would know; ``unanswered`` is why no other host answers its pings by IPv4."""
    rest = [host for host in cluster.hosts if host is not here]
    networks = {network.name: network for network in here.networks}
    leases = [host.lease(network) for host in rest for network in networks.values()]
    held = [(host.host.id, host.container(network)) for host in rest for network in networks.values()]
    found = others([host.host for host in rest], leases, held)
    peers = {address: id_ for id_, other in found.items() for address in other.addresses[""]}
    own = [here.container(network) for network in networks.values()]
    silent = {(name, host.host.id, 4): unanswered for name in networks for host in rest} if unanswered else {}
    steered = gateways(networks.values())
    underlay = here.host.underlay
    return Map(here.name, own, networks, peers, underlay, here.host.id, found, silent=silent, gateways=steered)


def local(cluster: Cluster, host: OverlayHost, unanswered: str = "") -> Local:
    """Return a host's parts of traces (to be made and used in its namespace)."""
    namespaces = Namespaces()
    for network in host.networks:
        endpoint = host.container(network)
        namespaces.register(endpoint.netns, endpoint.netns_path)
    return Local(namespaces, known(cluster, host, unanswered), host.folder)


def part(cluster: Cluster, number: int, entry: Entry, unanswered: str = "") -> Part:
    """Walk through one host."""
    host = cluster.hosts[number - 1]
    with cluster.world.entered(host.name):
        return local(cluster, host, unanswered).part(entry)


def traced(
    cluster: Cluster, source: str, target: str, to: str = "", silent: tuple[int, ...] = (), at: int = 1,
    unanswered: Mapping[int, str] = {},
) -> Trace:  # fmt: skip
    """Trace as the agent of host ``at`` would; hosts in ``silent`` tell nothing.

    ``unanswered`` says of hosts why nobody answers their own pings by IPv4.
    """
    first = cluster.hosts[at - 1]
    with cluster.world.entered(first.name):
        begin, end, packet = local(cluster, first).begin(source, target, to)

    def report(host: str, entry: Entry) -> Part | Unanswered:
        number = int(host.removeprefix("id-")) if host else at
        if number in silent:
            return Unanswered("it is silent")
        return part(cluster, number, entry, unanswered.get(number, ""))

    return run(trace(known(cluster, first), begin, end, packet), report)


def address(cluster: Cluster, number: int, network: Network, family: int = 4) -> str:
    """Return a container's address."""
    endpoint = cluster.hosts[number - 1].container(network)
    return next(p.address for p in endpoint.prefixes if p.family == family)
