"""Gauges of /metrics: an agent's condition, and what it serves, as numbers."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator

from linkspan import __version__
from linkspan.agent.agent import Agent
from linkspan.agent.condition import Condition
from linkspan.agent.metrics import Gauge
from linkspan.backends.wireguard import backend as wireguard
from linkspan.cluster.path_quality import worst
from linkspan.core.states.wireguard import key_id
from linkspan.store.etcd_status import UNSEEN


async def look(agent: Agent) -> dict[str, float]:
    """Read the sources of gauges that have no event; return the ages of WireGuard's handshakes, in seconds.

    The agent keeps BGP's counters.
    """
    await agent.bgp_sessions.look()
    await agent.policy_metrics.look()
    ages: dict[str, float] = {}
    if any(map(wireguard.serves, agent.networks.all())):
        table = await asyncio.to_thread(agent.worker.machine.wireguard.device.table)
        names = {host.keys.get(wireguard.BACKEND.name): host.name for host in agent.hosts.all().values()}
        for peer in table.peers.values() if table is not None else ():
            name = names.get(peer.public, key_id(peer.public))
            ages[name] = time.time() - peer.handshake if peer.handshake else float("inf")
    return ages


def gauges(agent: Agent, condition: Condition, handshakes: dict[str, float]) -> Iterator[Gauge]:
    """Yield the gauges: agent, store, hosts, networks, failed repairs, and sessions (with those that ``look`` read)."""
    yield "linkspan_info", "The running version", "version", {__version__: 1.0}
    ok = float(condition.ok)
    yield "linkspan_ok", "Whether `linkspan status` shows no problem on this host", "", {"": ok}
    yield from _of_store(agent, condition)
    yield from _of_hosts(agent, condition)
    age = "Seconds since WireGuard's last handshake with a peer, +Inf where there was none"
    yield "linkspan_wireguard_handshake_age_seconds", age, "peer", handshakes
    names = [network.name for network in agent.networks.all()]
    counts = {n: float(agent.registry.count(n)) for n in names}
    yield "linkspan_endpoints", "Endpoints attached", "network", counts
    free = {n: float(agent.blocks.free(n)) for n in names}
    yield "linkspan_addresses_free", "Addresses left", "network", free
    standings = {network.name: agent.fast_endpoints.standing(network) for network in agent.networks.all()}
    fast = {name: one for name, one in standings.items() if one is not None}
    what = "Whether this host forwards packets of a network with fast=true early"
    yield "linkspan_fast_path_up", what, "network", {name: float(not one.obstacle) for name, one in fast.items()}
    what = "Endpoints on the fast path of their network"
    yield "linkspan_fast_path_endpoints", what, "network", {n: float(one.endpoints) for n, one in fast.items()}
    unreadable = float(len(condition.store["unreadable"]))
    yield "linkspan_records_unreadable", "Records of the store that are skipped", "", {"": unreadable}
    held = {address: float(one) for address, one in agent.egress.held().items()}
    yield "linkspan_egress_address_held", "Whether a living host holds a network's egress address", "address", held
    failed = float(len(condition.records))
    yield "linkspan_records_failing", "Records of the store that are not used completely", "", {"": failed}
    claimed = float(len(condition.disputes))
    yield "linkspan_disputes", "Blocks and addresses that two hosts claim", "", {"": claimed}
    failing = float(len(condition.drift))
    yield "linkspan_drift", "Objects that cannot be brought to their desired state", "", {"": failing}
    ends = {one["name"]: float(one["expires"]) for one in condition.certificates}
    what = "When a certificate of this host for linkspan's own etcd, or its authority, expires"
    yield "linkspan_certificate_expires_timestamp_seconds", what, "certificate", ends
    bgp_sessions = agent.bgp_sessions.all()
    up = {p.session.name: float(p.why is None) for p in bgp_sessions}
    yield "linkspan_bgp_session_up", "Whether a BGP session is established", "peer", up
    for what in ("sent", "received", "accepted", "filtered"):
        numbers = {p.session.name: float(p.seen.count(what)) for p in bgp_sessions if p.seen is not None}
        yield f"linkspan_bgp_prefixes_{what}", f"Prefixes {what} in a BGP session", "peer", numbers


def _of_store(agent: Agent, condition: Condition) -> Iterator[Gauge]:
    up, contact = float(condition.store["ok"]), agent.replica.contact
    yield "linkspan_store_up", "Whether the store answers and has all records", "", {"": up}
    seconds = contact.took()
    took = {} if seconds is None else {"": seconds}
    yield "linkspan_store_answer_seconds", "Time that the store's last answer to a write took", "", took
    last = {} if contact.answered is None else {"": contact.answered}
    yield "linkspan_store_last_answer_timestamp_seconds", "When the store last answered", "", last
    lost = float(len(condition.store["lost"]))
    yield "linkspan_store_records_lost", "Records that the store lost and that are not restored", "", {"": lost}
    yield from _of_etcd(agent)


def _of_etcd(agent: Agent) -> Iterator[Gauge]:
    etcd, last = agent.upkeep.etcd, agent.upkeep.last
    up = {one.name: float(not one.problem) for one in etcd.members if one.problem != UNSEEN}
    yield "linkspan_store_member_up", "Whether a member of etcd answers this host", "member", up
    sizes = {one.name: float(one.size) for one in etcd.answering}
    yield "linkspan_store_size_bytes", "Size of a member's database file", "member", sizes
    used = {one.name: float(one.in_use) for one in etcd.answering}
    yield "linkspan_store_in_use_bytes", "The part of a member's file that is in use", "member", used
    quotas = {one.name: one.limit for one in etcd.answering}
    yield "linkspan_store_quota_bytes", "A member's quota, +Inf where it has none", "member", quotas
    full = {"": float(agent.replica.contact.full)} if etcd.members else {}
    yield "linkspan_store_full", "Whether etcd refuses writes because its quota is full", "", full
    raised = [kind for _, kind in etcd.alarms]
    alarms = {kind: float(raised.count(kind)) for kind in raised}
    yield "linkspan_store_alarms", "Members of etcd that raise an alarm", "alarm", alarms
    versions = [one.version for one in etcd.answering]
    counts = {version: float(versions.count(version)) for version in versions}
    yield "linkspan_store_members", "Members of etcd that answer, by version", "version", counts
    turns: dict[str, float] = {last.compactor or "nobody": last.at} if last.at else {}
    what = "When an agent last took the upkeep turn, by who compacts the history"
    yield "linkspan_store_upkeep_timestamp_seconds", what, "compactor", turns


def _of_hosts(agent: Agent, condition: Condition) -> Iterator[Gauge]:
    hosts = agent.hosts.all()
    words = {True: "alive", False: "silent", None: "unknown"}
    states = [words[agent.hosts.lives(id_)] for id_ in hosts]
    counts = {word: float(states.count(word)) for word in words.values()}
    yield "linkspan_hosts", "Hosts of the cluster, as this one sees them; unknown: the store is away", "state", counts
    # One line for each silent host, and none for the others, because every agent of a large cluster has these
    # lines.
    silent = {host.name: 1.0 for id_, host in hosts.items() if agent.hosts.lives(id_) is False}
    yield "linkspan_host_silent", "1 for each host whose agent is silent", "host", silent
    cut: dict[str, float] = {}
    for one in condition.unreachable:
        if one["network"]:
            cut[one["host"]] = cut.get(one["host"], 0) + 1
    yield "linkspan_peer_unreachable", "Networks in which this host does not reach a peer", "host", cut
    yield from _of_paths(agent)


def _of_paths(agent: Agent) -> Iterator[Gauge]:
    """Yield lines of networks, and of peers with loss: with all peers, N agents would have N lines each."""
    paths = agent.peer_paths.own().paths
    trips: dict[str, list[float]] = {}
    for path in paths:
        if path.round_trip is not None:
            trips.setdefault(path.network, []).append(path.round_trip)
    middle = {network: statistics.median(found) for network, found in trips.items()}
    yield "linkspan_peer_round_trip_seconds", "Median of the round trips to a network's peers", "network", middle
    longest = {network: max(found) for network, found in trips.items()}
    yield "linkspan_peer_round_trip_max_seconds", "Longest round trip to a network's peers", "network", longest
    loss = {agent.hosts.name(path.peer): path.loss for path in worst(paths) if path.loss}
    yield "linkspan_peer_loss_ratio", "Part of the last pings that a peer did not answer", "host", loss
