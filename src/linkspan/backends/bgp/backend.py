"""BGP backend (RFC 4271): hosts, route reflectors and routers announce to each other where containers are.

A packet's walk, container A on host 1 to B (10.244.2.9) on host 2: A's default route leads to host 1. There a
route from BIRD, 10.244.2.0/24 via 192.0.2.2 dev eth0 proto bird metric 1976, leads to host 2, or to a router
that has learnt the same from host 2. Nothing is wrapped. Host 2's guard accepts the source on its underlay
link, because it is in host 1's block, and a /32 route leads to B's veth.

The speaker is BIRD, an instance of our own. It serves all networks of the host, and has its own
configuration, control socket and log in the state folder. Its routes are recognised by their metric. The
speaker is a Process whose configuration is Files: the main file follows from the host and its leases, and
each session has a file of its own. A change is ``birdc configure``, which keeps all sessions whose own
configuration is unchanged.

A peer of the mesh costs a session with a small file, and a set element for each of its prefixes; its routes
are BIRD's. Without the mesh (``bgp.mesh=false``) it costs only the set elements. Overhead: none.

Announced: this host's blocks, and as /32 and /128 the exact addresses outside them. A drained host withdraws
within seconds the blocks in which no container is left. It keeps announcing the others, and its own address,
with the community GRACEFUL_SHUTDOWN (RFC 8326), so that its running containers stay reachable.

An egress address is a plain route to its holder, which must be on the segment: a router in between would send what
leaves to the outside by its own default route.

Accepted: from a host in the mesh only the prefixes of its leases, so no host can announce another's. From a
configured peer (a router, a reflector) everything in the pools that is at most a block wide, and never this
host's own prefixes. Anything else, such as a default route or the host's own networks, only if
``bgp.peer.NAME.import`` asks for it. A next hop that is not on a link of this host is not used, unless
``bgp.next-hops=any``.

Fail closed: each pool and each own block ends at an ``unreachable`` route, so packets to unannounced prefixes
are dropped.

Faults: BIRD's routes outlive it (``persist``), and the peers keep theirs (graceful restart, RFC 4724). The
agent restarts BIRD, which then takes over the routes that it finds. If no speaker runs after the restart
time, the agent sweeps the routes. A container may not speak to a peer's port 179: its packets would be
masqueraded to its host's address, and the peer would believe them. A container may not answer a peer's call
to its host either: a published port 179 does not accept peers.

Rejected: a speaker of our own, or ExaBGP (no best path, no kernel table: we would write both); one BIRD for
each network (one TCP port, and routers would see several peers in one host); blackholes in the kernel for
blocks (BIRD's static table announces them as well); FRR (five daemons, and a configuration that is changed by
dialogue).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence

from linkspan.backends import egress
from linkspan.backends.bgp import bird_config
from linkspan.backends.bgp.settings import Speaker, in_mesh, mesh_session, speaker
from linkspan.backends.multi_host import (
    admitted,
    admitted_plainly,
    facing,
    offered,
    plain_needs,
    plain_states,
    reached,
    underlay,
)
from linkspan.backends.routed import RoutedBackend
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.backend_contract import HostPhase
from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.core.host_view import HostView, Peer
from linkspan.core.model import Host, Lease, Network, Underlay
from linkspan.core.needs import Need
from linkspan.core.ruleset import element
from linkspan.core.states.bgp import Session
from linkspan.core.states.host import LEARNT_METRIC, UNREACHABLE_METRIC, Route, State
from linkspan.core.states.programs import BGP_PORT, BIRD, Bird, File, LearntRoutes, Process, Secret

SPARE = 1000
"""Prefixes that a peer may announce beyond those in the store; so the smallest limit is 1,024."""


class BgpBackend(RoutedBackend):
    """Routes learnt by a BGP speaker."""

    name = "bgp"
    summary = "BGP: plain routes, which the hosts' speakers (BIRD) tell each other"
    learns = True
    no_exit = ""
    has_settings = True
    host_phase: HostPhase = "after peers"
    programs: tuple[tuple[str, str], ...] = (("bird", "bird2"), ("birdc", "bird2"))

    def check_settings(self, host: Host) -> None:
        """Check the settings of the host's speaker. Raises Invalid."""
        speaker(host)

    def host(self, view: HostView) -> Iterable[State]:
        """Return the speaker with its sessions, and the rules that keep containers from speaking to its peers."""
        served = [network for network in view.networks if serves(network)]
        if not served:
            return
        mine, program, here = _speaker(view, served[0]), _program(view, served[0]), underlay(view, served[0])
        hops = next_hops(here)
        _check_families(served, hops)
        wanted = _wanted(view, mine, served)
        main = f"{program.folder}/bird.conf"
        yield File(main, bird_config.main(mine, _serving(view, served, hops), program.folder).encode(), 0o600)
        # BIRD 3 rejects the whole configuration if the folder to include is missing.
        yield File(f"{program.folder}/peers/none.conf", b"# A file for each session is here.\n", 0o600)
        expected = sum(len(list(reached(peer))) for peer in view.peers)
        for session, prefixes in wanted:
            text = bird_config.session(session, prefixes, hops, limit(session, expected))
            secret = session.password_file
            # Two kinds of state, two files: a new state must not meet one that is being removed.
            path = f"{program.folder}/peers/{session.protocol}{'.secret' if secret else ''}.conf"
            yield Secret(path, secret, text) if secret else File(path, text.encode(), 0o600)
            yield element(f"bgp_peers{prefix(session.address).family}", session.address)
        if wanted:
            yield element("speaker_ports", "179")
        control = ("-s", f"{program.folder}/{bird_config.CONTROL}")
        yield LearntRoutes(LEARNT_METRIC, BIRD, mine.restart_time)
        yield Process(
            BIRD,
            (program.speaker, "-f", "-c", main, *control),
            reload=(program.client, *control, "configure"),
            files=(main, f"{program.folder}/peers"),
            again=("-R",),
        )

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return the states that host-gw needs, too, and the ends of own blocks: also without a speaker."""
        yield from plain_states(view, network)
        yield from egress.network_states(view, network)
        lease = view.lease(network.name)
        for block in lease.blocks if lease else ():
            yield Route(block, metric=UNREACHABLE_METRIC)

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Return the elements that admit the peer's packets. Raises Unavailable if no session can lead to it."""
        offered(network, peer, self.name)
        if not peer.device:
            raise _unreached(
                network, peer, "there is no route to it", "look at `ip route` for its underlay address"
            )
        mine = _speaker(view, network)
        if mine.mesh and in_mesh(peer.host):
            _mesh_session(view, mine, network, peer)
        elif not mine.sessions:
            why = f"bgp.mesh=false on {'it' if mine.mesh else 'this host'}, and this host has no other peer"
            raise _unreached(network, peer, why, "set one (bgp.peer.NAME.address), or bgp.mesh=true")
        for target in reached(peer):
            yield admitted_plainly(view, network, target)
            if peer.device not in ("", underlay(view, network).ifname):  # routers may lead to it by another link
                yield admitted("ways", (peer.device,), target)
        if egress.families(view, network, peer):
            found = _beside(view, network, peer)
            yield from egress.routes(view, network, peer, peer.device, found, plain=True)

    def troubles(self, view: HostView) -> Iterable[str]:
        """Return the networks that leave by a host behind a router, which would send their packets elsewhere."""
        networks = {network.name: network for network in view.networks if network.backend == self.name}
        for peer in view.peers if view.host is not None and view.host.underlay is not None else ():
            if (network := networks.get(peer.lease.network)) is None:
                continue
            for family in egress.families(view, network, peer):
                if family not in _beside(view, network, peer):
                    yield (
                        f"network {network.name}: host {peer.host.name}, which holds its egress address "
                        f"{network.exits[family].address}, is not on this host's segment, so containers here do not "
                        "reach the outside; use an address of this segment, or backend vxlan"
                    )

    def needs(self, view: HostView, network: Network, peer: Peer) -> Iterable[Need]:
        """Return that the pool's packets reach a peer on the link unwrapped; routers are not ours to probe."""
        return plain_needs(view, network, peer) if peer.on_link else ()


def sessions(view: HostView) -> list[Session]:
    """Return the desired sessions of this host. Raises Invalid or Unavailable if it can have none."""
    served = [network for network in view.networks if serves(network)]
    if not served:
        return []
    mine = _speaker(view, served[0])
    return [session for session, _ in _wanted(view, mine, served)]


def limit(session: Session, expected: int) -> int:
    """Return how many prefixes of a family a session accepts, 0 for any number.

    ``expected`` is the number that the other hosts have by the store. No peer announces more than twice as
    many and SPARE. The limit is a power of two, so that few changes of leases change the session.
    """
    if session.prefixes is not None:
        return session.prefixes
    if any(span.longer for span in session.imports):  # for networks of others, which the store does not have
        return 0
    return 1 << (SPARE + 2 * expected).bit_length()


def problem(view: HostView) -> LinkspanError | None:
    """Return why this host cannot have the speaker that it needs, None if it can or needs none."""
    try:
        for network in view.networks:
            if serves(network):
                _program(view, network)
                _speaker(view, network)
    except LinkspanError as error:
        return error
    return None


def pools(view: HostView) -> tuple[Prefix, ...]:
    """Return the pools whose routes the speaker learns."""
    return tuple(pool for network in view.networks if serves(network) for pool in network.prefixes)


def next_hops(here: Underlay) -> dict[int, str]:
    """Return the underlay address that receives each family: its own, or for IPv4 an IPv6 one (RFC 8950)."""
    four, six = here.address(4), here.address(6)
    found = {4: four or six, 6: six}
    return {family: address.address for family, address in found.items() if address is not None}


def _check_families(served: Iterable[Network], hops: Mapping[int, str]) -> None:
    for network in served:
        for pool in network.prefixes:
            if pool.family not in hops:
                raise Unavailable(
                    f"network {network.name}: pool {pool} needs an underlay address of IPv{pool.family}, "
                    "and this host has none",
                    "give this host such an address",
                )


def _speaker(view: HostView, network: Network) -> Speaker:
    underlay(view, network)
    assert view.host is not None
    return speaker(view.host)


def _program(view: HostView, network: Network) -> Bird:
    """Return the path of BIRD. Raises Unavailable if it is missing, or another program uses its port."""
    found = view.facts.program(Bird)
    if found is None:
        raise Unavailable(
            f"network {network.name}: backend bgp needs BIRD, and this host has none",
            "install the package bird2 (its own service is not needed, and may be off)",
        )
    ours = {text.partition("/")[0] for text in underlay(view, network).addresses}
    for address, who in found.listeners:
        if address in ours | {"0.0.0.0", "::"}:
            raise Unavailable(
                f"network {network.name}: port {BGP_PORT} of {address}, which BGP needs, is in use by {who}",
                "stop that program, or make it listen only at another address",
            )
    return found


def _unreached(network: Network, peer: Peer, why: str, hint: str) -> Unavailable:
    return Unavailable(
        f"host {peer.host.name} cannot be reached by bgp in network {network.name}: {why}", hint
    )


def _beside(view: HostView, network: Network, peer: Peer) -> Mapping[int, bytes]:
    """Return the peer's addresses on this host's segment by family: routers lead packets to the outside elsewhere."""
    return facing(view, network, peer) if peer.on_link else {}


def _mesh_session(view: HostView, mine: Speaker, network: Network, peer: Peer) -> Session:
    assert view.host is not None
    if not peer.on_link and not mine.any_next_hop:
        raise _unreached(
            network,
            peer,
            "a router is between this host and the peer",
            "make the router a peer (bgp.peer.NAME.address) with bgp.mesh=false, or set bgp.next-hops=any",
        )
    return mesh_session(view.host, peer.host, peer.on_link)


def _wanted(
    view: HostView, mine: Speaker, served: Sequence[Network]
) -> list[tuple[Session, tuple[Prefix, ...]]]:
    """Return all sessions, one for each address, because BIRD keeps one of two idle. The mesh's come first."""
    mesh = list(_mesh(view, mine, served))
    within = {session.address for session, _ in mesh}
    return [*((one, ()) for one in mine.sessions if one.address not in within), *mesh]


def _mesh(
    view: HostView, mine: Speaker, served: Sequence[Network]
) -> Iterable[tuple[Session, tuple[Prefix, ...]]]:
    """Yield each session of the mesh, with the prefixes its host may announce: its leases in all networks served."""
    networks = {network.name: network for network in served}
    found: dict[str, tuple[Session, list[Prefix]]] = {}
    for peer in view.peers:
        network = networks.get(peer.lease.network)
        if network is None or not mine.mesh:
            continue
        with contextlib.suppress(LinkspanError):  # ``peer`` reports the reason, also if the peer's settings are invalid
            if not in_mesh(peer.host):
                continue
            session = _mesh_session(view, mine, network, peer)
            found.setdefault(peer.host.id, (session, []))[1].extend(reached(peer))
    for _, (session, prefixes) in sorted(found.items()):
        yield session, tuple(sorted(prefixes))


def _serving(view: HostView, served: Sequence[Network], hops: Mapping[int, str]) -> bird_config.Serving:
    within: list[bird_config.Pool] = []
    ours: list[Prefix] = []
    told: list[Prefix] = []
    for one in served:
        lease = view.lease(one.name)
        blocks = lease.blocks if lease else ()
        exact = [address for name, address in view.exact if name == one.name]
        for pool in one.prefixes:
            source = lease.address(pool.family) if lease else None
            length = max(one.subnet_len[str(pool.family)], pool.length)
            within.append(bird_config.Pool(pool, length, source.address if source else ""))
        ours += [*blocks, *exact]
        told += [*_told(view, lease), *exact] if lease else exact
    return bird_config.Serving(
        pools=tuple(within),
        own=tuple(sorted(ours)),
        announced=tuple(sorted(told)),
        next_hops=hops,
        drained=_drained(view),
    )


def _drained(view: HostView) -> bool:
    return view.host is not None and bool(view.host.settings.get("drained"))


def _told(view: HostView, lease: Lease) -> list[Prefix]:
    """Return the announced prefixes of a lease: its blocks, or of a drained host those in use."""
    if not _drained(view):
        return list(lease.blocks)
    living = [address for name, address in view.living if name == lease.network]
    left = [block for block in lease.blocks if any(block.holds(address) for address in living)]
    addresses = [prefix(text).single() for text in lease.addresses]
    return left + [a for a in addresses if not any(block.holds(a) for block in left)]


def serves(network: Network) -> bool:
    """Return whether the network uses the speaker, now or at the end of its migration."""
    ways = (network.backend, network.migration.backend if network.migration else "")
    return BgpBackend.name in ways


BACKEND = BgpBackend()
