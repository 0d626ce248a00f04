"""Conclusions from etcd's own figures: how full it is, and which member is defragmented next."""

from __future__ import annotations

import msgspec
import pytest

from linkspan.store.etcd_status import (
    CORRUPT,
    DEFAULT_QUOTA,
    NOSPACE,
    EtcdStatus,
    MemberStatus,
    bytes_told,
    compared,
    fragmented,
    has_room,
    next_fragmented,
)

MIB = 1 << 20


def member(name: str, size: int = 10, in_use: int = 10, quota: int = 1024, **more: object) -> MemberStatus:
    """Return a member that answers, with sizes in MiB."""
    found = MemberStatus(f"id-{name}", name, f"{name}:2379", "3.5.16", size * MIB, in_use * MIB, quota * MIB)
    return msgspec.structs.replace(found, **more)


def etcd(*members: MemberStatus, alarms: tuple[tuple[str, str], ...] = ()) -> EtcdStatus:
    """Return a cluster."""
    return EtcdStatus(1.0, members, alarms)


@pytest.mark.parametrize(
    ("sizes", "alarms", "level"),
    [
        ((10, 614), (), 0.0),
        ((10, 615), (), 0.6),
        ((820, 10), (), 0.8),
        ((10, 10), (("id-a", NOSPACE),), 1.0),
        ((10, 10), (("id-a", CORRUPT),), 0.0),
    ],
)
def test_the_fullest_member_counts(sizes: tuple[int, int], alarms: tuple[tuple[str, str], ...], level: float) -> None:
    """One member that reaches its quota stops all writes; so its file is what is compared with 60 and 80 %."""
    assert etcd(member("a", sizes[0]), member("b", sizes[1]), alarms=alarms).level == level


def test_a_quota_that_is_not_known_is_etcd_s_default_and_none_is_never_full() -> None:
    """A member that serves its metrics elsewhere tells no quota; one below 0 means that there is none."""
    assert member("a", quota=0).limit == DEFAULT_QUOTA
    assert member("a", 1 << 20, quota=-1).fill == 0


def test_a_member_that_does_not_answer_counts_for_nothing() -> None:
    """Its sizes are those of nobody, and it is not defragmented."""
    away = member("a", 1000, 1, problem="connection refused")
    assert etcd(away).fill == 0
    assert etcd(away).fullest is None
    assert not has_room(etcd(away))
    assert not fragmented(away, urgent=True)
    assert not fragmented(member("b", 1000, 1, endpoint=""), urgent=True)


@pytest.mark.parametrize(
    ("size", "in_use", "quota", "worth", "urgent"),
    [
        (90, 10, 2048, False, False),  # nobody misses 80 MiB
        (110, 50, 2048, True, True),  # half of a large file
        (110, 60, 2048, False, False),
        (5, 1, 16, True, True),  # a small file, and much of the quota
        (3, 1, 16, False, False),
        (70, 50, 100, True, True),  # close to the quota a fifth is worth it
        (70, 60, 100, False, True),  # the quota is full: the file's size alone tells
    ],
)
def test_a_pause_of_a_member_must_be_worth_it(size: int, in_use: int, quota: int, worth: bool, urgent: bool) -> None:
    """A member does not answer while it is defragmented; what is unused in a file is used again anyhow."""
    one = member("a", size, in_use, quota)
    assert fragmented(one, urgent=False) is worth
    assert fragmented(one, urgent=True) is urgent


def test_the_leader_is_defragmented_last() -> None:
    """The others in the order of their names; one that is done or has nothing unused is passed over."""
    a, b, c = (member(name, 800, 100) for name in "abc")
    found = etcd(msgspec.structs.replace(a, leader=True), b, c, member("d", 800, 790))
    order, done = [], frozenset[str]()
    while (following := next_fragmented(found, done, urgent=False)) is not None:
        order.append(following.name)
        done |= {following.id}
    assert order == ["b", "c", "a"]


def test_the_alarm_is_lifted_only_where_every_member_has_room() -> None:
    """One that is still close to its quota would raise it again at once."""
    assert has_room(etcd(member("a", 100), member("b", 900)))
    assert not has_room(etcd(member("a", 100), member("b", 950)))


@pytest.mark.parametrize(
    ("number", "told"), [(512, "512 B"), (1536, "1.5 KiB"), (16 << 20, "16.0 MiB"), (3 << 30, "3.0 GiB")]
)
def test_bytes_are_told_in_a_unit_that_fits(number: int, told: str) -> None:
    """With one decimal, as other tools do."""
    assert bytes_told(number) == told


def test_a_member_lags_that_has_not_applied_what_another_one_had_long_ago() -> None:
    """Its disk may hang: it answers all the same. A few entries of the present, and a learner, are no fault."""
    found = etcd(
        member("a", applied=5000),
        member("b", applied=4990),
        member("c", applied=4979),
        member("d", applied=10, learner=True),
        member("e", problem="connection refused"),
    )
    assert [one.name for one in compared(found, 4980).members if one.lags] == ["c"]
    assert [one.name for one in compared(found, 0).members if one.lags] == []
    far = etcd(member("a", applied=5000), member("b", applied=3999))
    assert [one.name for one in compared(far, 0).members if one.lags] == ["b"]
    assert [one.name for one in compared(far, 70_000).members if one.lags] == ["b"]


def test_no_member_lags_behind_an_etcd_that_was_restored_since() -> None:
    """The log of the restored one begins anew, so all have applied less than the earlier one had."""
    assert not any(one.lags for one in compared(etcd(member("a", applied=20), member("b", applied=20)), 70_000).members)
