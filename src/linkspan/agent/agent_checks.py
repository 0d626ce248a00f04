"""Checks of the doctor that only an agent can make, each a function of what the agent knows."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from linkspan.agent.fast_endpoints import Standing
from linkspan.agent.ipsec_sessions import RATE
from linkspan.backends import BACKENDS
from linkspan.backends.multi_host import is_unchecked
from linkspan.cluster import control_plane, controller_status
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.snapshots import Keeper, age, kept
from linkspan.cluster.questions import Ask, HealthQuestion, HealthReply
from linkspan.core import namesakes
from linkspan.core.addresses import FAMILIES
from linkspan.core.errors import Unavailable, counted, first_of
from linkspan.core.host_view import Facts, Peer
from linkspan.core.model import CONTROLLER, Network
from linkspan.diagnose.doctor import host_checks, store_checks, system_checks
from linkspan.diagnose.doctor.checks import Check, Status
from linkspan.kernel.drivers import bridge_filters
from linkspan.policy.review import Finding
from linkspan.store.replica import Replica

_RECORDS = "docs/clusters.md (Checks of records) explains each, with the fix"
_HOSTS = "`linkspan status` on that host shows its state, `linkspan doctor --peers` what the underlay lets through"
_LOOK = "`linkspan controller status`, where it runs, shows switches, links and hosts"
MOST_FINDINGS = 20
"""Findings about policies that a report has."""
_SHOWN = 6
"""Places named in one line."""


def snapshots(keeper: Keeper | None, started: float) -> list[Check]:
    """Return the check of a voter's automatic snapshots; ``started`` is when the agent was, in seconds of the epoch."""
    if keeper is None or not keeper.acts:
        return []
    now, folder = time.time(), keeper.folder
    return [store_checks.snapshots(folder, len(kept(folder)), age(folder, now), keeper.problem, now - started)]


def own_etcd(service: EtcdService | None, state_dir: Path) -> list[Check]:
    """Return whether a voter's etcd runs, and has space if its disk is not the state folder's; None: a client."""
    if service is None:
        return []
    found = []
    if service.trouble:
        found.append(Check("etcd", "fail", service.trouble, "once the cause is gone, it starts within half a minute"))
    with contextlib.suppress(OSError):  # no data yet, which is the problem above
        if service.folder.stat().st_dev != state_dir.stat().st_dev:
            found.append(system_checks.space("disk of etcd", service.folder))
    return found


def certificates(held: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Return whether this host's certificates for linkspan's own etcd are good; they renew themselves."""
    found: list[Check] = []
    for one in held:
        state: Status = "ok" if not one["problem"] else "fail" if one["expires"] <= time.time() else "warn"
        day = datetime.datetime.fromtimestamp(one["expires"], datetime.UTC).strftime("%Y-%m-%d")
        found.append(Check(f"certificate {one['name']}", state, one["problem"] or f"expires on {day}", one["fix"]))
    return found


def views(problems: Mapping[tuple[str, ...], str]) -> list[Check]:
    """Return why containers in several networks do not find all names; examine() covers single networks."""
    found = problems.items()
    return [Check(f"names of {' and '.join(zones)}", "warn", why) for zones, why in found if len(zones) > 1]


def policies(number: int, findings: Sequence[Finding]) -> list[Check]:
    """Return what is odd about the policies, of which there are ``number``."""
    if not number:
        return []
    if not findings:
        what = "1 policy" if number == 1 else f"{number} policies"
        return [Check("policies", "ok", f"{what}: each selects a container, and none contradicts another")]
    listed = findings[:MOST_FINDINGS]
    found = [Check(f"policy {one.policy}" if one.policy else "policies", "warn", one.what, one.fix) for one in listed]
    if len(findings) > len(found):
        more = len(findings) - len(found)
        found.append(Check("policies", "warn", f"{more} more findings like these", "mend those first"))
    return found


def names_of_policies(sentences: Iterable[str]) -> list[Check]:
    """Return which DNS names of policies lead nowhere on this host, though containers may go there by them."""
    fix = "`linkspan policy show` has their addresses; ask the network's name server: nslookup NAME GATEWAY"
    return [Check("names of policies", "warn", sentence, fix) for sentence in sentences]


def fast(standings: Mapping[str, Standing]) -> list[Check]:
    """Return which networks with ``fast=true`` are fast on this host, and why not; ``standings`` by network."""
    fix = "docs/backends.md (A fast path inside a network) explains it; meanwhile all packets pass the rules"
    return [
        Check(f"fast path of {name}", "warn" if one.obstacle else "ok", one.words(), fix if one.obstacle else "")
        for name, one in sorted(standings.items())
    ]


def unprotected(sentences: Iterable[str]) -> list[Check]:
    """Return which containers of this host policies do not protect."""
    fix = f"on a bridge: {bridge_filters.FIX}; on the host's own network: publish their ports, or use another one"
    return [Check("policies", "fail", sentence, fix) for sentence in sentences]


def forwarding(facts: Facts, unnoticed: str) -> list[Check]:
    """Return between which links the host still does not forward, though linkspan enabled forwarding.

    ``unnoticed`` says why the agent cannot notice that somebody enables it, '' if it can.
    """
    found = []
    for family in FAMILIES:
        closed, old = (
            sorted(n for f, n in links if f == family) for links in (facts.closed_links, facts.old_links)
        )
        if not closed or len(old) < 2:
            continue
        setting = host_checks.FORWARDING[family].replace("/", ".")
        names = f"{', '.join(closed[:_SHOWN])}{', ...' if len(closed) > _SHOWN else ''}"
        detail = (
            f"{setting} was 0, and linkspan set it to 1 for containers: as before, the host "
            "forwards no packets "
            f"from {names} to links that existed then; links that other programs make later are not restricted"
        )
        fix = f"to forward there as well: sysctl -w {setting}=1 (the agent notices the write)"
        standing: Status = "ok"
        if unnoticed:
            standing = "warn"
            detail += f". The agent cannot notice that somebody enables forwarding: inotify says {unnoticed}"
            fix = "raise fs.inotify.max_user_instances, and restart the agent"
        found.append(Check(f"routing IPv{family}", standing, detail, fix))
    return found


def control(places: Sequence[control_plane.Place], store: str) -> list[Check]:
    """Return from which places containers are kept away, and whether the store (a URL) authenticates clients."""
    texts = [control_plane.text(where) for where in places]
    if not texts:
        return [Check("control plane", "ok", "the store is a folder: containers cannot reach it over the network")]
    found = [Check("control plane", "ok", f"containers are kept from {first_of(texts, _SHOWN)}")]
    if store.startswith("etcd://") and "user=" not in store:
        why = "etcd has no user: anybody else who reaches it can change every host's routes"
        found.append(Check("store access", "warn", why, "docs/security.md: give etcd TLS and a password"))
    return found


def stations(networks: Iterable[Network], peers: Mapping[tuple[str, str], Peer]) -> list[Check]:
    """Return the peers, by network and host, whose plain packets are accepted from any MAC."""
    ways = {way.name: way for network in networks for way in network.ways}
    names = {
        peer.host.name
        for (name, _), peer in peers.items()
        if (way := ways.get(name)) and is_unchecked(way, peer, neighbours=BACKENDS[way.backend].neighbours)
    }
    if not names:
        return []
    detail = (
        f"{', '.join(sorted(names))} do not announce their MACs: any machine on the segment can send "
        "with addresses of their containers"
    )
    return [Check("MACs of peers", "warn", detail, "upgrade linkspan there: older versions do not announce them")]


def owners(disputes: Collection[Mapping[str, object]]) -> list[Check]:
    """Return whether every block and address has one owner."""
    if not disputes:
        return [Check("owners", "ok", "no block and no address is claimed by two hosts")]
    return [Check("owners", "fail", str(dispute["why"]), str(dispute["fix"])) for dispute in disputes]


def records(unused: Collection[Mapping[str, str]]) -> list[Check]:
    """Return the records of the store that are not used completely."""
    if not unused:
        return [Check("records", "ok", "every record of the store is used completely")]
    return [Check("records", "fail", f"record {one['key']}: {one['why']}", _RECORDS) for one in unused]


def hosts(unwell: Iterable[Mapping[str, str]], names: Mapping[str, str]) -> list[Check]:
    """Return the problems between hosts that `status` shows, and hosts (names by id) that share a name."""
    found = [
        Check("hosts", "fail" if one["network"] else "warn", f"host {one['host']}: {one['why']}", _HOSTS)
        for one in unwell
    ]
    shared = namesakes.shared(names).items()
    return found + [Check("host names", "warn", namesakes.told(*one), namesakes.FIX) for one in shared]


def associations(peers: int, up: int, waiting: int) -> list[Check]:
    """Return how many of the peers' IPsec associations are up; ``hosts`` has those that should be and are not."""
    if not peers:
        return []
    detail = f"the associations with {up} of {counted(peers, 'peer')} are up"
    if waiting:
        detail += f"; {waiting} wait for their turn to be started, {RATE:.0f} a second"
    return [Check("IPsec", "ok", detail)]


def settings(unknown: Mapping[str, str]) -> list[Check]:
    """Return the settings that linkspan could not restore: ``unknown``, by path, with what linkspan set."""
    if not unknown:
        return []
    names = ", ".join(f"{path.replace('/', '.')}={value}" for path, value in sorted(unknown.items()))
    detail = f"linkspan set {names}, and the earlier value is lost: uninstall keeps linkspan's value"
    fix = "after `linkspan uninstall` set each to what you want (sysctl -w)"
    return [Check("settings before linkspan", "warn", detail, fix)]


async def controller(replica: Replica, networks: Iterable[Network], ask: Ask) -> list[Check]:
    """Return what the active controller says of itself; nothing if no network needs one."""
    if not controller_status.needed(networks):
        return []
    name = controller_status.active(replica)
    if not name:
        why = "no controller is active: the switches learn of nothing new"
        return [Check("controller", "fail", why, controller_status.START)]
    try:
        found = await ask.ask(CONTROLLER, HealthQuestion(), HealthReply)
    except Unavailable as error:
        return [Check("controller", "warn", f"{name} is active, and does not report its state: {error.message}", _LOOK)]
    bad = [Check("controller", "fail", problem, _LOOK) for problem in found.problems]
    return bad or [Check("controller", "ok", f"{name} is active, and has nothing to complain of")]
