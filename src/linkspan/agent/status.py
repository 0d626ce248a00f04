"""Status of an agent: the answer of `status` and the gauges of /metrics."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from linkspan import __version__
from linkspan.agent import health, store_health
from linkspan.backends import BACKENDS, PROBLEMS, backend
from linkspan.backends.wireguard import backend as wireguard
from linkspan.cluster import controller_status
from linkspan.core import namesakes
from linkspan.core.errors import LinkspanError
from linkspan.core.fights import Contested
from linkspan.core.model import Network
from linkspan.core.states.wireguard import key_id
from linkspan.endpoints.reconstruction import is_unnamed
from linkspan.kernel import kinds
from linkspan.runtimes import expose
from linkspan.store.etcd_status import UNSEEN

if TYPE_CHECKING:
    from linkspan.agent.agent import Agent


def told(agent: Agent) -> dict[str, Any]:
    """Return the agent's status as documented for `status -o json`."""
    health.read_all(agent.leases, concerned(agent))
    heals = [
        {
            "at": h.at,
            "kind": h.about["kind"],
            "key": h.about["key"],
            "what": h.about["change"],
            "inside": h.about.get("inside", ""),  # the events may be those of an older release
        }
        for h in agent.happenings.kept("heal", 20)
    ]
    networks = [
        {
            "name": n.name,
            "backend": n.backend,
            "endpoints": _count(agent, n.name),
            "free": agent.free(n.name),
            "names": agent.naming.standing(n.name),
            "not_switched": agent.cluster.migrating.not_switched(n),
        }
        for n in agent.networks.all()
    ]
    process = {
        "version": __version__,
        "pid": os.getpid(),
        "started": agent.started,
        "socket": agent.config.socket,
    }
    found: dict[str, Any] = {
        "agent": process | {"state_dir": agent.config.state_dir},
        "store": store_health.told(agent),
        "records": not_used(agent),
        "networks": networks,
        "disputes": disputes(agent),
        "drift": [
            *dict.fromkeys(error.told for error in drift(agent)),
            *(told for service in agent.services.values() for told in service.problems),
            *agent.naming.problems.values(),
        ],
        "gone": [
            {"endpoint": e.name or e.id, "ifname": e.ifname, "network": e.network, "detached_in": seconds}
            for identity, seconds in agent.reaper.dead().items()
            if (e := agent.registry.endpoints.get(identity)) is not None
        ],
        "fights": [
            {
                "what": f.what,
                "by": f.by,
                "since": time.time() - (time.monotonic() - f.since),
                "repairs": f.repairs,
                "ports_down": f.closed,
            }
            for f in agent.worker.machine.reconciler.fights.open()
        ],
        "rebuilt": {
            "endpoints": agent.recovery.rebuilt,
            "why": f"the journal {agent.recovery.doubt}" if agent.recovery.rebuilt else "",
            "unnamed": [e.id for e in agent.registry.endpoints.values() if is_unnamed(e)],
        },
        "orphans": agent.orphans.told(),
        "heals": heals,
        "unreachable": unreachable(agent),
        "namesakes": [{"name": n, "ids": ids} for n, ids in namesakes.shared(agent.leases.names()).items()],
        "waiting": "",
        "bgp": _sessions(agent),
        "ipsec": agent.associating.counts(),
        "controller": controller_status.active(agent.replica)
        if controller_status.needed(agent.networks.all())
        else None,
    }
    return {"ok": _well(found, agent.leases.host.name), **found}


def _well(found: dict[str, Any], here: str) -> bool:
    """Return whether the status shows no problem of this host.

    A host whose agent is silent does not count: that is no fault of this host, and packets still reach it.
    """
    cut = [one for one in found["unreachable"] if one["network"] or here in one["host"].split(", ")]
    bgp = found["bgp"]["down"] or found["bgp"]["limited"]
    wrong = found["disputes"] or found["drift"] or found["orphans"] or found["records"] or cut or bgp
    return bool(found["store"]["ok"]) and not wrong


def unreachable(agent: Agent) -> list[dict[str, str]]:
    """Return the unreachable peers, and the other problems between hosts."""
    view = agent.view()
    troubles = [text for way in BACKENDS.values() for text in way.troubles(view)]
    lacks = [*agent.plans.problems, *troubles, *kinds.problems(), *PROBLEMS]
    found = health.unreachable(agent.cluster, agent.leases, agent.probes.silent(), lacks)
    here = agent.leases.host.name
    overlaps = agent.networks.overlaps().items()
    found += [{"network": name, "host": here, "why": why} for name, why in sorted(overlaps)]
    return [*found, *agent.associating.told()]


def concerned(agent: Agent) -> list[Network]:
    """Return the networks whose leases and blocks this host uses, or that nobody should have any in."""
    taking = agent.participation.all()
    return [one for one in agent.networks.all() if one.name in taking or not backend(one.backend).crosses_hosts]


def not_used(agent: Agent) -> list[dict[str, str]]:
    """Return the records that are not used completely: each with its key, its host, and the reason."""
    networks = agent.networks
    why = agent.leases.refused(concerned(agent))
    why |= {f"networks/{name}": f"not in force on this host: {told}" for name, told in networks.withheld.items()}
    for id_, host in agent.leases.hosts().items():
        if id_ != agent.leases.host.id and (told := networks.covering(host)):
            why[f"hosts/{id_}"] = told
    for network in networks.all():
        if told := expose.problem(network):
            why[f"networks/{network.name}"] = told
    # Last: an earlier version of such a record is in force, which may fail as well.
    why |= agent.remote.reasons | agent.replica.reasons
    return [{"key": key, "host": agent.leases.of_record(key), "why": why[key]} for key in sorted(why)]


def disputes(agent: Agent) -> list[dict[str, object]]:
    """Return the blocks and addresses that two hosts claim."""
    return [agent.disputes.told(one) for one in (*agent.disputes.open(), *agent.holdings.open())]


def _sessions(agent: Agent) -> dict[str, object]:
    """Return the number of BGP sessions, those that are down, and what is said of all together."""
    down = [
        {"peer": p.session.name, "state": p.state, "why": p.why.reason, "fix": p.why.fix}
        for p in agent.peerings.all()
        if p.why is not None
    ]
    limited = [
        {"peer": p.session.name, "why": p.limited.reason, "fix": p.limited.fix}
        for p in agent.peerings.all()
        if p.limited is not None
    ]
    crowded = agent.peerings.crowded
    warnings = [{"why": crowded.reason, "fix": crowded.fix}] if crowded is not None else []
    return {"sessions": len(agent.peerings.all()), "down": down, "limited": limited, "warnings": warnings}


def drift(agent: Agent) -> list[LinkspanError]:
    """Return why objects differ from their desired state; ignore those of a container that is gone."""
    reconciler = agent.worker.machine.reconciler
    found = [error for key, error in reconciler.failing.items() if not agent.reaper.orphaned(key)]
    return found + [Contested(fight.message, there=True) for fight in reconciler.fights.open() if fight.closed]


def _count(agent: Agent, network: str) -> int:
    return sum(e.network == network for e in agent.registry.endpoints.values())


async def look(agent: Agent) -> dict[str, float]:
    """Read the sources of gauges that have no event; return the ages of WireGuard's handshakes, in seconds.

    The agent keeps BGP's counters.
    """
    await agent.peerings.look()
    ages: dict[str, float] = {}
    if any(map(wireguard.serves, agent.networks.all())):
        table = await asyncio.to_thread(agent.worker.machine.wireguard.device.table)
        names = {host.keys.get(wireguard.BACKEND.name): host.name for host in agent.leases.hosts().values()}
        for peer in table.peers.values() if table is not None else ():
            name = names.get(peer.public, key_id(peer.public))
            ages[name] = time.time() - peer.handshake if peer.handshake else float("inf")
    return ages


def gauges(agent: Agent, handshakes: dict[str, float]) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """Yield the gauges: agent, store, hosts, networks, failed repairs, and sessions (with those that ``look`` read)."""
    yield "linkspan_info", "The running version", "version", {__version__: 1.0}
    well = float(told(agent)["ok"])
    yield "linkspan_ok", "Whether `linkspan status` shows no problem on this host", "", {"": well}
    yield from _of_store(agent)
    yield from _of_hosts(agent)
    age = "Seconds since WireGuard's last handshake with a peer, +Inf where there was none"
    yield "linkspan_wireguard_handshake_age_seconds", age, "peer", handshakes
    names = [network.name for network in agent.networks.all()]
    counts = {n: float(_count(agent, n)) for n in names}
    yield "linkspan_endpoints", "Endpoints attached", "network", counts
    free = {n: float(agent.free(n)) for n in names}
    yield "linkspan_addresses_free", "Addresses left", "network", free
    unreadable = float(len(agent.unreadable))
    yield "linkspan_records_unreadable", "Records of the store that are skipped", "", {"": unreadable}
    failed = float(len(not_used(agent)))
    yield "linkspan_records_failing", "Records of the store that are not used completely", "", {"": failed}
    claimed = float(len(disputes(agent)))
    yield "linkspan_disputes", "Blocks and addresses that two hosts claim", "", {"": claimed}
    failing = float(len(drift(agent)))
    yield "linkspan_drift", "Objects that cannot be brought to their desired state", "", {"": failing}
    peerings = agent.peerings.all()
    up = {p.session.name: float(p.why is None) for p in peerings}
    yield "linkspan_bgp_session_up", "Whether a BGP session is established", "peer", up
    for what in ("sent", "received", "accepted", "filtered"):
        numbers = {p.session.name: float(p.seen.count(what)) for p in peerings if p.seen is not None}
        yield f"linkspan_bgp_prefixes_{what}", f"Prefixes {what} in a BGP session", "peer", numbers


def _of_store(agent: Agent) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    up, contact = float(store_health.state(agent)[0] in store_health.WELL), agent.replica.contact
    yield "linkspan_store_up", "Whether the store answers and has all records", "", {"": up}
    seconds = contact.took()
    took = {} if seconds is None else {"": seconds}
    yield "linkspan_store_answer_seconds", "Time that the store's last answer to a write took", "", took
    last = {} if contact.answered is None else {"": contact.answered}
    yield "linkspan_store_last_answer_timestamp_seconds", "When the store last answered", "", last
    lost = float(len(agent.replica.lost))
    yield "linkspan_store_records_lost", "Records that the store lost and that are not restored", "", {"": lost}
    yield from _of_etcd(agent)


def _of_etcd(agent: Agent) -> Iterator[tuple[str, str, str, dict[str, float]]]:
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


def _of_hosts(agent: Agent) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    hosts = agent.leases.hosts()
    words = {True: "alive", False: "silent", None: "unknown"}
    states = [words[agent.leases.lives(id_)] for id_ in hosts]
    counts = {word: float(states.count(word)) for word in words.values()}
    yield "linkspan_hosts", "Hosts of the cluster, as this one sees them; unknown: the store is away", "state", counts
    # One line for each silent host, and none for the others, because every agent of a large cluster has these
    # lines.
    silent = {host.name: 1.0 for id_, host in hosts.items() if agent.leases.lives(id_) is False}
    yield "linkspan_host_silent", "1 for each host whose agent is silent", "host", silent
    cut: dict[str, float] = {}
    for one in unreachable(agent):
        if one["network"]:
            cut[one["host"]] = cut.get(one["host"], 0) + 1
    yield "linkspan_peer_unreachable", "Networks in which this host does not reach a peer", "host", cut
