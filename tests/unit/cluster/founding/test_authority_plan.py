"""The steps of a rotation: who may act, whom it waits for, and what a voter trusts in each."""

from __future__ import annotations

import datetime

import msgspec
import pytest

from linkspan.cluster.founding.authority_plan import (
    CLIENTS,
    DROP,
    PEERS,
    SIGN,
    TRUST,
    RotationRecord,
    VotersSeen,
    arranged,
    may_act,
    waited_for,
)
from linkspan.cluster.founding.certificates import new_authority, new_key
from linkspan.cluster.founding.reissue import RenewalWish
from linkspan.cluster.founding.signer import JoinedHost
from linkspan.cluster.founding.validity import fingerprints

NEW = new_authority(new_key(), "clients", datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC))
(HASH,) = fingerprints(NEW)
OTHER = "0" * 64


def rotation(step: str, **more: object) -> RotationRecord:
    """Return a rotation of the authority of hosts."""
    one = RotationRecord(id="r", step=step, begun=0, authorities={CLIENTS: NEW.decode()}, sealed="")
    return msgspec.structs.replace(one, **more)


def host(name: str, trusts: tuple[str, ...] = (), shows: str = "", *, forgotten: bool = False) -> JoinedHost:
    """Return what is kept of a host."""
    return JoinedHost(name, "", (), "", 0, forgotten=forgotten, trusts=trusts, shows=shows)


def test_in_each_step_the_one_that_signs_is_the_first() -> None:
    """And to repeat a step changes nothing."""
    trusted = arranged(TRUST, [b"old"], b"new")
    assert trusted == arranged(TRUST, trusted, b"new") == [b"old", b"new"]
    signs = arranged(SIGN, trusted, b"new")
    assert signs == arranged(SIGN, signs, b"new") == [b"new", b"old"]
    assert arranged(DROP, signs, b"new") == arranged(DROP, [b"new"], b"new") == [b"new"]
    assert arranged(SIGN, [b"old"], b"new") == [b"new", b"old"]  # a voter that came later


def test_a_step_waits_for_all_hosts_that_have_not_said_that_they_are_ready() -> None:
    """But not for voters, which do it by themselves, nor for hosts that are forgotten or left out."""
    hosts = {
        "v": host("v"),
        "none": host("none"),
        "trusts": host("trusts", (OTHER, HASH), OTHER),
        "shows": host("shows", (OTHER, HASH), HASH),
        "gone": host("gone", forgotten=True),
        "out": host("out"),
    }
    assert waited_for(rotation(TRUST, without=("out",)), hosts, {"v"}) == ["none"]
    assert waited_for(rotation(SIGN, without=("out",)), hosts, {"v"}) == ["none", "trusts"]
    assert waited_for(rotation(DROP), hosts, {"v"}) == []
    peers = rotation(TRUST, authorities={PEERS: NEW.decode()})
    assert waited_for(peers, hosts, {"v"}) == []


def test_voters_act_while_all_answer_and_the_leader_is_the_last() -> None:
    """An etcd that restarts is one that is missing. No clock of a host decides anything."""
    three = frozenset({"a", "b", "c"})
    follower, leader = VotersSeen(three, leads=False, answer=True), VotersSeen(three, leads=True, answer=True)
    assert may_act(rotation(TRUST), "a", follower)
    assert not may_act(rotation(TRUST), "c", leader)
    assert not may_act(rotation(TRUST, done=("a",)), "c", leader)
    assert may_act(rotation(TRUST, done=("a", "b")), "c", leader)
    assert not may_act(rotation(TRUST), "a", VotersSeen(three, leads=False, answer=False))
    assert not may_act(rotation(TRUST, done=("a",)), "a", follower)
    assert may_act(rotation(TRUST), "v", VotersSeen(frozenset({"v"}), leads=True, answer=True))


@pytest.mark.parametrize(
    "sent", [b'{"trusts": ["x"]}', b'{"trusts": "' + b"0" * 64 + b'"}', msgspec.json.encode({"trusts": [OTHER] * 9})]
)
def test_what_a_host_says_of_itself_is_bounded(sent: bytes) -> None:
    """It is kept in the vault."""
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(sent, type=RenewalWish)
