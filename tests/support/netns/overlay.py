"""Hosts of a cluster without agents: namespaces on underlay segments, each made by a reconciler of its own.

Host N has 192.0.2.N and fd02::N on the first segment. In every network it holds the N-th block and has that
block's first address for itself; its one container has the block's number 5.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import pytest

from linkspan.backends import backend, migration
from linkspan.core.addresses import Prefix, derived_mac, mac_text, prefix
from linkspan.core.host_view import Facts, HostView, Other, Peer
from linkspan.core.ipam import gateway
from linkspan.core.model import Endpoint, Host, Lease, Network, Offer, Underlay, host_ifname
from linkspan.core.reconcile import Report
from linkspan.core.ruleset import admission, skeleton
from linkspan.core.states.host import State
from linkspan.core.states.programs import IpipHelper
from linkspan.kernel.kinds import kinds
from linkspan.kernel.machine import Machine
from support.netns.world import World
from support.polling import until

MTU = 1500
BLOCK = {4: 24, 6: 64}


def network(name: str, number: int, backend: str, families: Sequence[int] = (4,), **options: str) -> Network:
    """Describe a network whose pools have the number."""
    pools = {4: f"10.{number}.0.0/16", 6: f"fd{number}::/48"}
    texts = tuple(pools[family] for family in families)
    return Network(
        name=name,
        pools=texts,
        subnet_len={str(family): BLOCK[family] for family in families},
        backend=backend,
        options=options,
        mtu=MTU,
        gateways=tuple(str(gateway(prefix(pool), True)) for pool in texts),
    )


def block(network: Network, number: int) -> tuple[Prefix, ...]:
    """Return a host's blocks in a network."""
    found = []
    for pool in network.prefixes:
        length = BLOCK[pool.family]
        found.append(Prefix(pool.at(number << (len(pool.packed) * 8 - length)).packed, length))
    return tuple(found)


def network_states(view: HostView, network: Network) -> list[State]:
    """Return what a network needs on a host, with the chains for packets of other hosts, as `agent/plans.py` does."""
    chains = [admission(pool, network.subnet_len[str(pool.family)], kinds()) for pool in network.prefixes]
    return [*chains, *migration.network_states(view, network)]


class OverlayHost:
    """A namespace with a machine, and what it knows."""

    def __init__(self, world: World, number: int, folder: Path, families: Sequence[int]) -> None:
        self.world, self.number, self.name = world, number, f"h{number}"
        addresses = {4: f"192.0.2.{number}/24", 6: f"fd02::{number}/64"}
        underlay = Underlay("eth0", tuple(addresses[family] for family in families), MTU)
        self.host = Host(id=f"id-{number}", name=self.name, underlay=underlay)
        self.folder = folder / self.name
        self.networks: list[Network] = []
        self.peers: dict[str, list[Peer]] = {}
        self.attached: set[str] = set()
        self.others: tuple[Other, ...] = ()
        self.exits: dict[tuple[str, int], str] = {}
        with world.entered(self.name):
            self.machine = Machine(self.folder)
            helper = self.machine.program(IpipHelper)
        self.facts = Facts(programs=(helper,) if helper else ())

    def close(self) -> None:
        """Take all away, and let go."""
        with self.world.entered(self.name):
            for source in list(self.machine.reconciler.desired.sources()):
                self.machine.reconciler.change(source, ())
            self.machine.close()
            self.machine.processes.close()

    def view(self) -> HostView:
        """Return what a backend sees."""
        leases = tuple(self.lease(one) for one in self.networks)
        return HostView(
            tuple(self.networks),
            facts=self.facts,
            host=self.host,
            leases=leases,
            others=self.others,
            exits=self.exits,
        )

    def lease(self, network: Network) -> Lease:
        """Return this host's lease in a network, with its offer."""
        blocks = block(network, self.number)
        lease = Lease(
            network=network.name,
            host=self.host.id,
            prefixes=tuple(map(str, blocks)),
            addresses=tuple(one.single().address for one in blocks),
        )
        bare = HostView((network,), facts=self.facts, host=self.host, leases=(lease,))
        data = backend(network.backend).announce(bare, network)
        assert data is not None
        return msgspec.structs.replace(lease, endpoints={network.backend: Offer(dict(data))})

    def container(self, network: Network) -> Endpoint:
        """Describe the host's container in a network: in the namespace cN."""
        name = f"c{self.number}"
        addresses = tuple(
            str(Prefix(one.packed, one.length).at(5).single()) for one in block(network, self.number)
        )
        number = [one.name for one in self.networks].index(network.name)
        ifname = f"eth{number}"
        return Endpoint(
            id=f"{name}-id",
            ifname=ifname,
            network=network.name,
            addresses=addresses,
            gateways=network.gateways,
            mac=mac_text(derived_mac(name, network.name)),
            mtu=MTU - backend(network.backend).overhead[self.host.underlay.outer],  # type: ignore[union-attr]
            host_ifname=host_ifname(True, f"{name}-id", ifname),
            metric=number,
            netns=self.world.inode(name),
            netns_path=self.world.path(name),
        )

    def sources(self) -> Iterator[tuple[tuple[str, ...], list[State]]]:
        """Yield everything that this host should have, by source."""
        view = self.view()
        yield ("host",), list(skeleton(self.facts, kinds()))
        for way in {backend(one.backend).name: backend(one.backend) for one in self.networks}.values():
            if way.host_phase == "before networks":
                yield ("host", way.name), list(way.host(view))
        for one in self.networks:
            yield ("network", one.name), network_states(view, one)
            for peer in self.peers.get(one.name, ()):
                states = list(backend(one.backend).peer(view, one, peer))
                yield ("peer", one.name, peer.host.name), states
            if one.name in self.attached:
                endpoint = self.container(one)
                states = list(backend(one.backend).endpoint(one, endpoint))
                yield ("attachment", endpoint.id, endpoint.ifname), states

    def states(self) -> list[State]:
        """Return the same in one list."""
        return list(dict.fromkeys(state for _, states in self.sources() for state in states))

    def converge(self) -> None:
        """Make it so, source by source."""
        with self.world.entered(self.name):
            with contextlib.suppress(KeyError):
                self.machine.namespaces.register(
                    self.world.inode(f"c{self.number}"), self.world.path(f"c{self.number}")
                )
            for source, states in self.sources():
                failed = self.machine.reconciler.change(source, states)
                assert failed == {}, (self.name, source, [e.message for e in failed.values()])

    def resync(self) -> Report:
        """Check everything and repair it."""
        with self.world.entered(self.name):
            return self.machine.reconciler.resync(None, self._inside())

    def differs(self) -> list[State]:
        """Return what a pass would change."""
        with self.world.entered(self.name):
            change, _ = self.machine.reconciler.difference(None, self._inside())
        return [*change.put, *change.delete]

    def _inside(self) -> tuple[int, ...]:
        name = f"c{self.number}"
        return (self.world.inode(name),) if name in self.world._names and self.networks else ()


class Cluster:
    """Hosts on one segment, a bridge in a namespace of its own, each with a container."""

    def __init__(self, count: int, folder: Path, families: Sequence[int] = (4, 6)) -> None:
        numbers = range(1, count + 1)
        self.world = World("sw", *(f"{kind}{n}" for n in numbers for kind in "hc"), tag="lko")
        self.families = tuple(families)
        self.hosts: list[OverlayHost] = []
        self.world.sh("sw", "ip link add br0 type bridge; ip link set br0 up")
        for number in numbers:
            self.plugged(f"h{number}", number)
            self.hosts.append(OverlayHost(self.world, number, folder, self.families))

    def plugged(self, name: str, number: int) -> None:
        """Plug a namespace into the segment, with the N-th addresses."""
        nodad = {4: "", 6: "nodad"}
        addresses = {4: f"192.0.2.{number}/24", 6: f"fd02::{number}/64"}
        commands = [
            "link set lo up",
            f"link add eth0 type veth peer name p{number} netns {self.world.named('sw')}",
            *(f"addr add {addresses[family]} dev eth0 {nodad[family]}" for family in self.families),
            "link set eth0 up",
        ]
        self.world.sh(name, "ip -batch - <<'EOF'\n" + "\n".join(commands) + "\nEOF")
        self.world.sh("sw", f"ip link set p{number} master br0 up")

    def close(self) -> None:
        """Remove all."""
        for host in self.hosts:
            host.close()
        self.world.close()

    def joined(
        self, networks: Iterable[Network], on_link: bool = True, attached: Sequence[Sequence[str]] = ()
    ) -> None:
        """Let every host know every other, as ``known`` has it, converge, and wait for helpers to be at work."""
        networks = list(networks)
        self.known(networks, on_link, attached)
        for host in self.hosts:
            host.converge()
        if any(one.backend == "ipip" for one in networks):
            for number in range(1, len(self.hosts) + 1):
                until(partial(self._carries, f"h{number}"), f"the IPIP endpoint of h{number} is at work", 30)

    def _carries(self, host: str) -> bool:
        """Return whether IPIP's device has a carrier: a TUN has one for as long as its endpoint holds it."""
        return "NO-CARRIER" not in self.world.sh(host, "ip link show lsipip")

    def known(
        self, networks: Iterable[Network], on_link: bool = True, attached: Sequence[Sequence[str]] = ()
    ) -> None:
        """Let every host know every other in these networks; its container is attached to all, or to those named."""
        networks = list(networks)
        for number, host in enumerate(self.hosts):
            host.networks = networks
            host.attached = set(attached[number]) if attached else {one.name for one in networks}
            host.peers = {
                one.name: [
                    Peer(other.host, other.lease(one), "eth0", on_link)
                    for other in self.hosts
                    if other is not host
                ]
                for one in networks
            }

    def pings(self, one: int, other: int, network: Network, size: int = 56) -> bool:
        """Return whether container N reaches container M, at each of its addresses, by packets not to be fragmented."""
        target = self.hosts[other - 1].container(network)
        return all(self.world.reaches(f"c{one}", p.address, 5.0, size) for p in target.prefixes)


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Cluster]:
    """Make three hosts, and a machine on their segment that belongs to nobody: it has no route to any container."""
    cluster = Cluster(3, tmp_path, (4,))
    cluster.world.add("x")
    cluster.plugged("x", 9)
    yield cluster
    cluster.close()
