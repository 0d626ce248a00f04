"""Store checks of a shared etcd, by its members' answers: space, alarms, members, history (pure)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from linkspan.diagnose.doctor.checks import Check, Status
from linkspan.store.etcd_status import (
    CORRUPT,
    DEFAULT_QUOTA,
    NOSPACE,
    SEVERE,
    STEPS,
    UNSEEN,
    WARN,
    EtcdStatus,
    MemberStatus,
    bytes_told,
    fragmented,
    has_room,
)
from linkspan.store.upkeep import OTHER, OURS, Allowed, Turn

BROKEN = ("3.5.0", "3.5.1", "3.5.2")
"""Releases of which etcd's maintainers warned that a crash may leave a member with other data than the others."""
OLD_SNAPSHOT, FIRST_SNAPSHOT = 2 * 86400.0, 900.0
"""Seconds after which an automatic snapshot is too old, and after which an agent that runs should have taken one."""
OLD, DURABLE = 16, 20
"""Patches of etcd 3.5: older ones than the first have further defects of learners, and from the second on etcd writes a
promotion to its disk, where 3.6 looks for it (etcd issue 19557)."""
_PATCH = re.compile(r"3\.5\.\d{1,4}")
RECENT = 2 * 86400.0
"""Seconds for which another host's turn says that somebody looks after the store, though this host may not."""

_DEFRAGMENT = "etcdctl defrag --endpoints=HOST:2379, one member after the other, the leader last"
_LARGER = "give etcd a larger --quota-backend-bytes (it advises 8 GiB at most), and restart its members one by one"


def checks(etcd: EtcdStatus, allowed: Allowed, last: Turn, *, ours: bool = False) -> Iterator[Check]:
    """Yield the checks; none before a member was asked.

    ``allowed`` is what this host's agent may do about it, ``last`` the last turn of an agent. ``ours``: linkspan runs
    the etcd, and chooses its members by itself.
    """
    if etcd.members:
        yield _space(etcd, allowed, last)
        yield _fragmentation(etcd, allowed)
        yield from _alarms(etcd, allowed)
        yield from _members(etcd, ours=ours)
        yield from _upgrade(etcd)
        yield _history(etcd, allowed, last)


def snapshots(folder: Path, count: int, age: float | None, problem: str, up: float) -> Check:
    """Return whether a voter's automatic snapshots are recent; ``age`` and ``up``, the agent's time, are in seconds."""
    again = "linkspan cluster snapshot FILE takes one now; `linkspan doctor` says when the next one was taken"
    because = f": {problem}" if problem else ""
    if age is None:
        status: Status = "warn" if problem or up > FIRST_SNAPSHOT else "ok"
        detail = f"there is none in {folder} yet{because}"
        return Check("store snapshots", status, detail, again if status == "warn" else "")
    detail = f"{count} in {folder}, the last one {age / 3600:.0f} h old"
    if age > OLD_SNAPSHOT:
        return Check("store snapshots", "warn", f"{detail}{because}", again)
    return Check("store snapshots", "ok", f"{detail}; copy them to another machine (docs/recovery.md)")


def _space(etcd: EtcdStatus, allowed: Allowed, last: Turn) -> Check:
    worst = etcd.fullest
    if worst is None:
        return Check("store space", "skip", "no member reports its size")
    if worst.quota < 0:
        detail = f"{bytes_told(worst.size)} on member {worst.name}, which has no quota"
        return Check("store space", "ok", detail)
    detail = f"{worst.fill:.0%} of the quota: {bytes_told(worst.size)} of {bytes_told(worst.limit)}"
    detail += f" on member {worst.name}"
    if not worst.quota:
        detail += f" ({bytes_told(DEFAULT_QUOTA)} is etcd's default: the member does not tell its own)"
    if worst.fill < WARN:
        return Check("store space", "ok", detail)
    why, fix = _filled_by(worst, allowed, last)
    return Check("store space", "fail" if worst.fill >= SEVERE else "warn", f"{detail}; {why}", fix)


def _filled_by(worst: MemberStatus, allowed: Allowed, last: Turn) -> tuple[str, str]:
    """Return what a member's file is full of, and what to do about it."""
    if worst.loose >= 0.2:
        fix = "nothing: an agent defragments it within some minutes" if allowed == "all" else _DEFRAGMENT
        return f"{worst.loose:.0%} of the file is unused", fix
    if not _looked_after(allowed, last):
        return "nobody compacts its history", _COMPACT
    owners = "`etcdctl get / --prefix --keys-only` shows whose keys there are"
    return "records and the history of the last minutes take it", f"{_LARGER}; {owners}"


_COMPACT = 'set store_upkeep = "compact" on the hosts, or give etcd --auto-compaction-retention=1h'


def _looked_after(allowed: Allowed, last: Turn) -> bool:
    """Return whether the history is compacted, or soon will be."""
    if last.compactor == OTHER or allowed != "none":
        return True
    return last.compactor == OURS and time.time() - last.at < RECENT


def _fragmentation(etcd: EtcdStatus, allowed: Allowed) -> Check:
    ragged = [one for one in etcd.answering if fragmented(one, urgent=False)]
    if not ragged:
        most = max((one.loose for one in etcd.answering), default=0.0)
        return Check("store fragmentation", "ok", f"at most {most:.0%} of a member's file is unused")
    told = ", ".join(f"{one.loose:.0%} of {bytes_told(one.size)} on member {one.name}" for one in ragged)
    detail = f"part of a file that nothing uses: {told}"
    if allowed == "all":
        return Check("store fragmentation", "ok", f"{detail}; an agent defragments it within some minutes")
    return Check("store fragmentation", "warn", detail, _DEFRAGMENT)


def _alarms(etcd: EtcdStatus, allowed: Allowed) -> Iterator[Check]:
    if not etcd.alarms:
        yield Check("store alarms", "ok", "none")
    if full := ", ".join(etcd.called(id_) for id_, kind in etcd.alarms if kind == NOSPACE):
        yield _no_space(etcd, full, allowed)
    for id_, kind in etcd.alarms:
        if kind == CORRUPT:
            yield _corrupt(etcd, id_)


def _no_space(etcd: EtcdStatus, full: str, allowed: Allowed) -> Check:
    """Return the check of an alarm NOSPACE, which stays after somebody has made room.

    There is room only where every member tells its quota: otherwise the quota may be smaller than etcd's default.
    """
    if has_room(etcd) and all(one.quota for one in etcd.answering):
        detail = f"NOSPACE, raised by member {full}: the quota was full. There is room again ({etcd.fill:.0%} of it is "
        detail += "used), and etcd takes no writes until the alarm is lifted; containers continue"
        fix = "etcdctl alarm disarm"
        if allowed == "all":
            fix = f"nothing: an agent lifts it within two minutes; if it does not, {fix}"
        return Check("store alarms", "fail", detail, fix)
    detail = f"NOSPACE, raised by member {full}: the quota is full, so etcd takes no writes; containers continue"
    return Check("store alarms", "fail", detail, _room(allowed))


def _corrupt(etcd: EtcdStatus, member: str) -> Check:
    """Return the check of an alarm CORRUPT, which nobody may lift before the wrong data are gone.

    etcd writes member 0 if it cannot say which of the members is wrong (its server/etcdserver/corrupt.go).
    """
    refused = "a damaged disk, or a defect of etcd; etcd refuses all requests, and containers continue"
    lift = "then etcdctl alarm disarm"
    if len(etcd.members) == 1:
        detail = f"CORRUPT: the data of {etcd.called(member)}, the only member, are damaged: {refused}"
        return Check("store alarms", "fail", detail, "restore a snapshot: etcdutl snapshot restore")
    if member == "0":
        detail = f"CORRUPT: members have different data, and etcd cannot say which of them is wrong: {refused}"
        fix = "etcdctl endpoint hashkv --cluster shows who differs; replace the members that differ from most others "
        fix += f"(etcdctl member remove, and add again with an empty data folder), {lift}"
        return Check("store alarms", "fail", detail, fix)
    detail = f"CORRUPT: member {etcd.called(member)} has other data than the others: {refused}"
    fix = f"stop this member, etcdctl member remove it, add it again with an empty data folder, {lift}"
    return Check("store alarms", "fail", detail, fix)


def _room(allowed: Allowed) -> str:
    """Return what to do where the quota is full."""
    steps = "etcdctl defrag for each member, the leader last; then etcdctl alarm disarm"
    if allowed == "all":
        return f"nothing: an agent makes room within two minutes; if it does not, {STEPS}"
    if allowed == "compact":
        return f"{steps} (the agents have compacted the history; {STEPS})"
    return f"etcdctl compact REVISION; {steps} ({STEPS})"


def _members(etcd: EtcdStatus, *, ours: bool) -> Iterator[Check]:
    """Yield the problems of the members, or one line without any."""
    found = list(_wrong_members(etcd, ours=ours))
    if not found:
        names = ", ".join(f"{one.name or one.id}{_role(one)}" for one in etcd.members)
        found = [Check("store members", "ok", f"{names}: etcd {etcd.members[0].version}")]
    yield from found


def _role(one: MemberStatus) -> str:
    return " (leader)" if one.leader else " (learner)" if one.learner else ""


def _wrong_members(etcd: EtcdStatus, *, ours: bool) -> Iterator[Check]:
    for one in etcd.members:
        if ours and one.learner:
            continue  # it begins, or it is taken out by itself
        if ours and one.problem:
            fix = f"start host {one.name} and the agent there; `linkspan cluster members` shows who may take its place"
            yield Check("store members", "warn", f"the voter {one.name} is not seen: {one.problem}", fix)
        elif one.problem == UNSEEN:
            fix = "give it its own address by --advertise-client-urls, or add it to the store's URL"
            yield Check("store members", "warn", f"member {one.name} is not seen: {one.problem}", fix)
        elif one.problem:
            fix = "start it, or etcdctl member remove it if it will not come back; until then one less may fail"
            yield Check("store members", "warn", f"member {one.name or one.id} is not seen: {one.problem}", fix)
    for one in etcd.answering:
        if one.lags:
            detail = f"member {one.name or one.id} answers, and does not apply what the others have applied"
            fix = f"look at its disk, load and log ({one.endpoint}); until it has caught up, one less may fail"
            yield Check("store members", "warn", detail, fix)
    if etcd.answering and not any(one.led for one in etcd.answering):
        fix = "start the members that are down, or repair the path between them: more than half must see each other"
        yield Check("store members", "fail", "no member knows a leader, so etcd takes no writes", fix)
    versions = sorted({one.version for one in etcd.answering})
    if len(versions) > 1:
        told = ", ".join(f"{one.name} {one.version}" for one in etcd.answering)
        yield Check("store members", "warn", f"versions differ: {told}", "upgrade the others, one after the other")
    for version in versions:
        if version in BROKEN:
            detail = f"etcd {version} may lose data in a crash: its maintainers warn of it"
            yield Check("store members", "warn", detail, "upgrade etcd, one member after the other")
    voters = sum(not one.learner for one in etcd.members)
    if voters > 1 and voters % 2 == 0 and not ours:  # it adds one as soon as a host may become a voter
        detail = f"{voters} voting members survive the loss of {voters // 2 - 1}, as {voters - 1} do"
        yield Check("store members", "warn", detail, "add one more member, or remove one")


def _upgrade(etcd: EtcdStatus) -> Iterator[Check]:
    """Yield what must be known before an upgrade to etcd 3.6, if members may have been learners."""
    patches = [int(one.version[4:]) for one in etcd.answering if _PATCH.fullmatch(one.version)]
    if len(etcd.members) > 1 and patches and min(patches) < DURABLE:
        detail = f"etcd 3.5 before 3.5.{DURABLE} does not write to its disk that a learner became a voter"
        fix = "before you upgrade to 3.6: the newest 3.5 on all members, one after the other"
        yield Check("store upgrade", "warn" if min(patches) < OLD else "ok", detail, fix)


def _history(etcd: EtcdStatus, allowed: Allowed, last: Turn) -> Check:
    name = "store history"
    if last.compactor == OTHER:
        return Check(name, "ok", "etcd compacts it, or another program does: the agents leave it alone")
    if last.compactor == OURS and _looked_after(allowed, last):
        return Check(name, "ok", f"the agents compact it; the last to take its turn was host {last.by}")
    if allowed == "none":
        detail = "store_upkeep of this host is none, and no turn of another host is known"
        detail += " of the last two days" if last.at else ": the first comes after about two hours"
        fix = f'nothing if another host has "compact" or "all" and little changes; otherwise {_COMPACT}'
        return Check(name, "warn", detail, fix)
    if etcd.full:
        return Check(name, "ok", "the agents compact it whenever the quota is full")
    detail = "nobody is known to compact it regularly: the agents do so if etcd has not within about two hours"
    return Check(name, "ok", detail)
