"""Faults of an etcd in `doctor` and `status`: each with its cause, and what to do."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from linkspan.diagnose.doctor.checks import Check
from linkspan.diagnose.doctor.store_checks import FIRST_SNAPSHOT, OLD_SNAPSHOT, checks, snapshots
from linkspan.store.etcd_status import CORRUPT, NOSPACE, UNSEEN, EtcdStatus, MemberStatus
from linkspan.store.upkeep import OTHER, OURS, Allowed, Turn

MIB = 1 << 20
HOURS = 3600.0


def member(name: str, size: int = 10, in_use: int = 9, **more: object) -> MemberStatus:
    """Return a member that answers, with sizes in MiB and a quota of 100 MiB."""
    found = MemberStatus(f"id-{name}", name, f"{name}:2379", "3.5.16", size * MIB, in_use * MIB, 100 * MIB)
    return msgspec.structs.replace(found, **more)


WELL = (member("m0", leader=True), member("m1"), member("m2"))


def said(
    *members: MemberStatus,
    alarms: tuple[tuple[str, str], ...] = (),
    allowed: Allowed = "compact",
    last: Turn = Turn("h1", 1.0, OURS),  # noqa: B008 - it is frozen
) -> dict[str, Check]:
    """Return the checks that are not ok, by name; the last one where several have one name."""
    found = checks(EtcdStatus(1.0, members, alarms), allowed, last)
    return {one.check.removeprefix("store "): one for one in found if one.status != "ok"}


def test_a_sound_etcd_is_ok_in_every_respect() -> None:
    """Six lines, of which each says what was found; nothing where nobody has looked yet."""
    found = list(checks(EtcdStatus(1.0, WELL), "compact", Turn("h1", time.time(), OURS)))
    assert [(one.check, one.status) for one in found] == [
        ("store space", "ok"),
        ("store fragmentation", "ok"),
        ("store alarms", "ok"),
        ("store members", "ok"),
        ("store upgrade", "ok"),
        ("store history", "ok"),
    ]
    assert found[0].detail == "10% of the quota: 10.0 MiB of 100.0 MiB on member m0"
    assert found[3].detail == "m0 (leader), m1, m2: etcd 3.5.16"
    assert list(checks(EtcdStatus(), "compact", Turn())) == []


@pytest.mark.parametrize(("size", "status"), [(59, None), (60, "warn"), (79, "warn"), (80, "fail")])
def test_a_file_is_warned_of_at_60_percent_and_fails_at_80(size: int, status: str | None) -> None:
    """The part of the quota is in the line."""
    found = said(*WELL[1:], member("m0", size, size)).get("space")
    assert (found and found.status) == status
    if found:
        assert found.detail.startswith(f"{size}% of the quota")


@pytest.mark.parametrize(
    ("in_use", "allowed", "last", "why", "fix"),
    [
        (30, "compact", Turn("h1", 1.0, OURS), "57% of the file is unused", "etcdctl defrag"),
        (30, "all", Turn("h1", 1.0, OURS), "57% of the file is unused", "nothing: an agent defragments it"),
        (69, "none", Turn(), "nobody compacts its history", 'store_upkeep = "compact"'),
        (69, "none", Turn("h1", 1.0, OURS), "nobody compacts its history", 'store_upkeep = "compact"'),
        (69, "compact", Turn("h1", 1.0, OURS), "records and the history of the last minutes", "--quota-backend-bytes"),
        (69, "none", Turn("h1", 1.0, OTHER), "records and the history of the last minutes", "--quota-backend-bytes"),
    ],
)
def test_a_file_that_fills_has_a_cause_and_a_fix(in_use: int, allowed: Allowed, last: Turn, why: str, fix: str) -> None:
    """Unused space, a history that nobody compacts, and records that need more are three things."""
    found = said(*WELL[1:], member("m0", 70, in_use), allowed=allowed, last=last)["space"]
    assert why in found.detail
    assert fix in found.fix


@pytest.mark.parametrize(
    ("allowed", "fix"),
    [
        ("all", "nothing: an agent makes room"),
        ("compact", "the agents have compacted the history"),
        ("none", "etcdctl compact REVISION"),
    ],
)
def test_a_full_store_says_what_is_left_to_do(allowed: Allowed, fix: str) -> None:
    """It depends on what the agents may do; the page has the steps."""
    found = said(*WELL[1:], member("m0", 100, 20), alarms=(("id-m1", NOSPACE),), allowed=allowed)["alarms"]
    assert (found.status, "raised by member m1" in found.detail) == ("fail", True)
    assert "containers continue" in found.detail
    assert fix in found.fix
    assert "docs/store.md" in found.fix


def test_an_alarm_that_outlived_the_full_quota_is_only_to_be_lifted() -> None:
    """Room was made, so nothing else is left to do; a quota that is not known may still be full."""
    raised = (("id-m1", NOSPACE),)
    found = said(*WELL, alarms=raised)["alarms"]
    assert (found.status, "There is room again (10% of it is used)" in found.detail) == ("fail", True)
    assert found.fix == "etcdctl alarm disarm"
    assert said(*WELL, alarms=raised, allowed="all")["alarms"].fix.startswith("nothing: an agent lifts it")
    assert "defrag" in said(member("m1", quota=0), alarms=raised)["alarms"].fix


@pytest.mark.parametrize(
    ("members", "corrupt", "detail", "fix"),
    [
        (WELL, "id-m2", "member m2 has other data", "member remove it"),
        (WELL, "0", "cannot say which of them is wrong", "endpoint hashkv --cluster"),
        (WELL[:1], "id-m0", "the data of m0, the only member, are damaged", "snapshot restore"),
    ],
)
def test_corrupt_data_are_somebody_s(
    members: tuple[MemberStatus, ...], corrupt: str, detail: str, fix: str
) -> None:
    """No agent lifts this alarm: first the data of a member must be replaced."""
    found = said(*members, alarms=((corrupt, CORRUPT),), allowed="all")["alarms"]
    assert (found.status, detail in found.detail, fix in found.fix) == ("fail", True, True)
    assert "containers continue" in found.detail


def test_unused_space_is_the_agents_or_the_operator_s() -> None:
    """Where the agents may defragment, nothing is asked of anybody."""
    ragged = (*WELL[1:], member("m0", 50, 10))
    assert "80% of 50.0 MiB on member m0" in said(*ragged)["fragmentation"].detail
    assert "the leader last" in said(*ragged)["fragmentation"].fix
    assert "fragmentation" not in said(*ragged, allowed="all")


@pytest.mark.parametrize(
    ("members", "status", "detail"),
    [
        ((*WELL[:2], member("m2", problem="connection refused", version="")), "warn", "member m2 is not seen"),
        ((*WELL[:2], member("m2", problem=UNSEEN, version="")), "warn", "it advertises no address"),
        ((*WELL[:2], member("m2", lags=True)), "warn", "member m2 answers, and does not apply what the others have"),
        ((*WELL[:2], member("m2", version="3.6.1")), "warn", "versions differ: m0 3.5.16, m1 3.5.16, m2 3.6.1"),
        ((member("m0", leader=True, version="3.5.1"),), "warn", "may lose data in a crash"),
        (WELL[:2], "warn", "2 voting members survive the loss of 0, as 1 do"),
        ((*WELL, member("m3", learner=True)), None, ""),
        (tuple(member(name, led=False) for name in ("m0", "m1", "m2")), "fail", "no member knows a leader"),
        ((member("m0", leader=True),), None, ""),
    ],
)
def test_members_that_are_not_well_are_told(members: tuple[MemberStatus, ...], status: str | None, detail: str) -> None:
    """One that is away or applies nothing, versions that differ or lose data, a useless number, and no leader."""
    found = said(*members).get("members")
    assert (found and found.status) == status
    if found:
        assert detail in found.detail
        assert found.fix


@pytest.mark.parametrize(("version", "status"), [("3.5.15", "warn"), ("3.5.16", "ok"), ("3.5.19", "ok")])
def test_an_etcd_that_forgets_promotions_is_named(version: str, status: str) -> None:
    """Of several members only, and no more from 3.5.20 on."""
    several = (member("m0", leader=True), member("m1", version=version), member("m2"))
    found = [one for one in checks(EtcdStatus(1.0, several), "compact", Turn()) if one.check == "store upgrade"]
    assert [one.status for one in found] == [status]
    for members in ((member("m0", leader=True, version=version),), (member("m0", version="3.5.20"),) * 3):
        assert "store upgrade" not in {one.check for one in checks(EtcdStatus(1.0, members), "compact", Turn())}


@pytest.mark.parametrize(
    ("allowed", "last", "status", "words"),
    [
        ("compact", Turn(), "ok", "nobody is known to compact it"),
        ("compact", Turn("h7", 1.0, OURS), "ok", "the last to take its turn was host h7"),
        ("none", Turn("h7", 1.0, OTHER), "ok", "the agents leave it alone"),
        ("none", Turn("h7", time.time() - HOURS, OURS), "ok", "host h7"),
        ("none", Turn("h7", 1.0, OURS), "warn", "no turn of another host is known of the last two days"),
        ("none", Turn(), "warn", "no turn of another host is known: the first comes after about two hours"),
    ],
)
def test_who_compacts_the_history_is_told(allowed: Allowed, last: Turn, status: str, words: str) -> None:
    """A host that may not is content with any other that does, and warns where none is seen."""
    (found,) = [one for one in checks(EtcdStatus(1.0, WELL), allowed, last) if one.check == "store history"]
    assert (found.status, words in found.detail) == (status, True)


def test_a_full_store_s_history_is_compacted_without_a_turn() -> None:
    """`doctor` does not say that nobody compacts it beside the steps that begin after a compaction."""
    full = EtcdStatus(1.0, WELL, (("id-m1", NOSPACE),))
    (found,) = [one for one in checks(full, "compact", Turn()) if one.check == "store history"]
    assert (found.status, found.detail) == ("ok", "the agents compact it whenever the quota is full")


@pytest.mark.parametrize(
    ("count", "age", "problem", "up", "status", "detail"),
    [
        (7, 3 * 3600.0, "", 9e6, "ok", "7 in /s, the last one 3 h old; copy them"),
        (7, 3 * 3600.0, "no room", 9e6, "ok", "7 in /s, the last one 3 h old; copy them"),
        (7, OLD_SNAPSHOT + 3600, "no room", 9e6, "warn", "7 in /s, the last one 49 h old: no room"),
        (0, None, "", FIRST_SNAPSHOT / 2, "ok", "there is none in /s yet"),
        (0, None, "", FIRST_SNAPSHOT * 2, "warn", "there is none in /s yet"),
        (0, None, "no room", 1.0, "warn", "there is none in /s yet: no room"),
    ],
)
def test_a_voter_without_a_recent_snapshot_is_named(
    count: int, age: float | None, problem: str, up: float, status: str, detail: str
) -> None:
    """With the reason, and what to type; a failure counts once the last one is old."""
    found = snapshots(Path("/s"), count, age, problem, up)
    assert (found.check, found.status) == ("store snapshots", status)
    assert found.detail.startswith(detail)
    assert bool(found.fix) == (status == "warn")


def test_members_that_linkspan_chooses_need_no_advice_on_etcd() -> None:
    """While a host becomes a voter there are two, and the learner has no name; one that is lost is named as a voter."""
    learner = member("", problem=UNSEEN, version="", learner=True)
    found = checks(EtcdStatus(1.0, (*WELL[:2], learner)), "all", Turn("h1", 1.0, OURS), ours=True)
    (members,) = [one for one in found if one.check == "store members"]
    assert (members.status, members.detail) == ("ok", "m0 (leader), m1, id- (learner): etcd 3.5.16")
    lost = (*WELL[:2], member("m2", problem="connection refused", version=""))
    found = checks(EtcdStatus(1.0, lost), "all", Turn("h1", 1.0, OURS), ours=True)
    (members,) = [one for one in found if one.check == "store members"]
    assert members.detail == "the voter m2 is not seen: connection refused"
    assert "etcdctl" not in members.fix
