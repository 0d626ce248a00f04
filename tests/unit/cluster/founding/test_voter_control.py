"""Control of the voters: which hosts may become one, and how a host knows that it was chosen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from linkspan.cluster.founding import member_list, promotion, voter_control
from linkspan.cluster.founding.authority_plan import ROTATION, TRUST, RotationRecord
from linkspan.cluster.founding.handover import TURN, Turn
from linkspan.cluster.founding.signer import HOSTS, JoinedHost
from linkspan.cluster.founding.voter_control import (
    FORGETTING,
    RETRY_SECONDS,
    Forgetting,
    Living,
    VoterControl,
    candidates,
    chosen,
)
from linkspan.cluster.founding.voting import Add, Candidate, Promote, Remove, Seen, VotingSettings
from linkspan.core.errors import Conflict, Invalid, LinkspanError, NotFound, Unavailable
from linkspan.core.store_url import etcd_parts
from linkspan.store.etcd_errors import Refused
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_wire import Member
from linkspan.store.vault import Vault
from support.fake_voters import Voters
from support.memory_vault import Etcd

NOW = 10_000.0


class Records(Living):
    """Hosts of which some are dead or drained."""

    def lives(self, host: str) -> bool | None:
        """Return whether a host's agent lives."""
        return host != "dead"

    def address(self, host: str) -> str:
        """Return a host's address."""
        return "" if host == "drained" else f"at-{host}"

    def known(self, host: str) -> bool:
        """Return whether a host has a record."""
        return bool(host)

    def names(self) -> Mapping[str, str]:
        """Return the hosts' names."""
        return {}


def joined(name: str, *, member: bool = True, forgotten: bool = False) -> JoinedHost:
    """Return what is kept of a host."""
    return JoinedHost(name, "key", (), "t", 0.0, forgotten=forgotten, member=member)


def names(first: str = "", failed: dict[str, float] | None = None) -> list[str]:
    """Return the candidates of a cluster, in their order."""
    hosts = {name: joined(name) for name in ("c", "b", "dead", "drained", "voter")}
    hosts |= {"client": joined("client", member=False), "gone": joined("gone", forgotten=True)}
    turn, settings = Turn(by="", at=0.0, failed=failed or {}), VotingSettings(first=first)
    found = candidates(hosts, (Seen(id="1", host="voter"),), Records(), turn, settings, NOW)
    return [one.host for one in found]


def test_only_living_hosts_that_may_and_did_not_fail_lately_are_candidates() -> None:
    """By their names; the one that an operator wants goes first."""
    assert names() == ["b", "c"]
    assert names(first="c") == ["c", "b"]
    assert names(failed={"b": NOW - RETRY_SECONDS + 1}) == ["c"]
    assert names(failed={"b": NOW - RETRY_SECONDS - 1}) == ["b", "c"]
    assert names(failed={"b": NOW + 3600}) == ["b", "c"]  # by the clock of another voter, an hour ahead


def member(id_: str, host: str, address: str, *, learner: bool = False) -> Member:
    """Return a member of etcd; it has no name before it has started."""
    name = f"voter-{host}" if host else ""
    clients = (f"https://{address}:5379",) if host else ()
    return Member(id=id_, name=name, peers=(f"https://{address}:5380",), clients=clients, learner=learner)


def test_a_host_is_chosen_if_the_learner_has_its_address_and_no_other_name() -> None:
    """A voter is no learner, and another host's learner is not this one's."""
    own = frozenset({"192.0.2.2"})
    voter = member("1", "a", "192.0.2.1")
    fresh, started = (member("2", host, "192.0.2.2", learner=True) for host in ("", "b"))
    assert chosen((voter, fresh), own, "voter-b") == fresh
    assert chosen((voter, started), own, "voter-b") == started
    assert chosen((voter, started), own, "voter-c") is None
    assert chosen((voter, member("2", "b", "192.0.2.2")), own, "voter-b") is None
    assert chosen((voter, member("2", "", "192.0.2.3", learner=True)), own, "voter-b") is None


def test_learners_are_no_endpoints_and_a_new_member_joins_all() -> None:
    """Addresses of IPv6 stay in their brackets."""
    members = (member("1", "a", "192.0.2.1"), member("3", "c", "[2001:db8::3]"))
    fresh = member("2", "", "192.0.2.2", learner=True)
    assert member_list.endpoints((*members, fresh)) == ("192.0.2.1:5379", "[2001:db8::3]:5379")
    assert member_list.signers(member_list.endpoints(members)) == ("192.0.2.1:5381", "[2001:db8::3]:5381")
    assert member_list.address(members[1]) == "2001:db8::3"
    text = promotion.joins((*members, fresh), fresh, "voter-b")
    assert text.split(",") == [
        "voter-a=https://192.0.2.1:5380", "voter-c=https://[2001:db8::3]:5380", "voter-b=https://192.0.2.2:5380"
    ]  # fmt: skip


def test_a_gateway_follows_the_voters() -> None:
    """It keeps the endpoint that answered last while that is a voter, and a late answer of another one is nothing."""
    gateway = Gateway(etcd_parts("etcd://192.0.2.1:5379/x"))
    gateway.follow(("192.0.2.1:5379", "192.0.2.2:5379"))
    assert gateway.order() == ("192.0.2.1:5379", "192.0.2.2:5379")
    gateway.follow(("192.0.2.2:5379", "192.0.2.3:5379"))
    assert gateway.endpoint in gateway.url.endpoints
    gateway.prefer("192.0.2.1:5379")
    assert gateway.endpoint in gateway.url.endpoints
    gateway.prefer("192.0.2.3:5379")
    assert gateway.order() == ("192.0.2.3:5379", "192.0.2.2:5379")


def test_a_host_whose_address_etcd_refuses_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts may advertise one address, by a copy or on purpose; it is noted as one that failed."""
    voters = Voters(monkeypatch, ("1",))
    candidate = Candidate("2", "192.0.2.1")
    monkeypatch.setattr(voter_control, "next_step", lambda _seen: Add(candidate))
    control = VoterControl(voters.vault, "1", Records(), lambda _text: None)

    async def run() -> None:
        voters.gateway.refusal = Refused("etcdserver: Peer URLs already exists", "", 9)
        with pytest.raises(Refused):
            await control._step(())
        turn, revision = await voters.vault.get(TURN, Turn)
        assert turn is not None
        assert (turn.host, [*turn.failed]) == ("", ["2"])
        await voters.vault.put({TURN: (Turn(by="", at=0.0), revision)})
        voters.gateway.refusal = Refused("etcdserver: unhealthy cluster", "", 9)
        with pytest.raises(Refused):
            await control._step(())
        turn, _ = await voters.vault.get(TURN, Turn)
        assert turn is not None
        assert turn.failed == {}  # that is no fault of the host

    asyncio.run(run())


def test_a_learner_is_promoted_by_the_leader_whichever_etcd_answered_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one would pass the request on without the user, and the leader refuse it for ever."""
    voters = Voters(monkeypatch, ("1", "2"))
    voters.gateway.endpoint = "192.0.2.2:5379"
    learner = Seen(id="3", host="3", learner=True)
    monkeypatch.setattr(voter_control, "next_step", lambda _seen: Promote(learner))
    monkeypatch.setattr(Vault, "enrol", lambda _vault, _host: asyncio.sleep(0))
    control = VoterControl(voters.vault, "1", Records(), lambda _text: None)
    asyncio.run(control._step((Seen(id="1", host="1", leader=True), Seen(id="2", host="2"), learner)))
    assert voters.gateway.promoted == [("192.0.2.1:5379", "3")]


def test_no_host_is_chosen_while_authorities_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would get those that end."""
    voters = Voters(monkeypatch, ("1",))
    monkeypatch.setattr(voter_control, "next_step", lambda _seen: Add(Candidate("2", "192.0.2.2")))
    control = VoterControl(voters.vault, "1", Records(), lambda _text: None)
    rotation = RotationRecord(id="r", step=TRUST, begun=0, authorities={}, sealed="")

    async def run() -> None:
        await voters.vault.put({ROTATION: (rotation, 0)})
        await control._step(())
        assert (await voters.vault.get(TURN, Turn))[0] is None

    asyncio.run(run())


def test_the_voters_stay_who_they_are_while_a_host_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one host less the voter that forgets it may be one too many, and nobody else ends what it began.

    Whoever looked before that begins no step either; an earlier try that broke off changes nothing.
    """
    voters, steps = Voters(monkeypatch, ("1", "2")), list[str]()
    forgetting, deciding = (VoterControl(voters.vault, host, Records(), print) for host in ("1", "2"))
    monkeypatch.setattr(voter_control, "next_step", lambda _seen: Remove(Seen(id="1", host="1"), "one is enough"))

    async def expel(_control: VoterControl, member: Seen) -> None:
        steps.append(member.host)

    async def run() -> None:
        await voters.vault.hold(FORGETTING + "3/1", Forgetting("1"), 99)
        async with forgetting.steady("3"):
            assert await voters.vault.all(FORGETTING, Forgetting) == {"3/1": Forgetting("1")}
            await deciding._step(())
            assert steps == []
        await deciding._step(())
        assert steps == ["1"]
        steps.clear()
        with pytest.raises(Unavailable):
            async with forgetting.steady("3"):
                raise Unavailable("the agent of 2 is off: type the same again")
        await deciding._step(())
        assert steps == []

        async def overtaken(_self: Vault, prefix: str, _kind: type) -> dict[str, object]:
            if prefix == FORGETTING:  # it looks a moment before the other one begins
                await begun.__aenter__()
            return {}

        begun = forgetting.steady("3")
        monkeypatch.setattr(Vault, "all", overtaken)
        await deciding._step(())
        await begun.__aexit__(None, None, None)
        assert steps == []

    monkeypatch.setattr(VoterControl, "_expel", expel)
    asyncio.run(run())


def test_a_forget_changes_the_turn_after_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A voter that changes it a moment before that has begun its step; whoever looked then begins none."""
    voters = Voters(monkeypatch, ("1", "2"))
    real, seen = Vault.put, list[int]()

    async def put(vault: Vault, values: Mapping[str, tuple[msgspec.Struct | None, int]]) -> bool:
        if TURN in values and len(seen) < 2:
            _, revision = await vault.get(TURN, Turn)
            await real(vault, {TURN: (Turn(by="2", at=0.0), revision)})
            seen.append((await vault.get(TURN, Turn))[1])
        return await real(vault, values)

    monkeypatch.setattr(Vault, "put", put)

    async def run() -> None:
        async with VoterControl(voters.vault, "1", Records(), print).steady("3"):
            turn, revision = await voters.vault.get(TURN, Turn)
            assert turn == Turn(by="2", at=0.0)
            assert (len(seen), revision > max(seen)) == (2, True)

    asyncio.run(run())


def test_two_voters_that_forget_one_host_do_not_end_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The voters stay who they are until the last one has ended what it began."""
    voters = Voters(monkeypatch, ("1", "2"))
    one, other = (VoterControl(voters.vault, host, Records(), print).steady("3") for host in ("1", "2"))

    async def marks() -> set[str]:
        return {*await voters.vault.all(FORGETTING, Forgetting)}

    async def run() -> None:
        async with one:
            async with other:
                assert await marks() == {"3/1", "3/2"}
            assert await marks() == {"3/1"}
        assert await marks() == set()

    asyncio.run(run())


@pytest.mark.parametrize("refusal", [Conflict, NotFound, Invalid])
def test_voting_goes_on_after_a_forget_that_was_refused(
    monkeypatch: pytest.MonkeyPatch, refusal: type[LinkspanError]
) -> None:
    """Nobody types the same again, so nothing is waited for."""
    voters = Voters(monkeypatch, ("1", "2"))
    control = VoterControl(voters.vault, "1", Records(), print)

    async def run() -> None:
        with pytest.raises(refusal):
            async with control.steady("3"):
                raise refusal("it must stay a voter")
        assert await voters.vault.all(FORGETTING, Forgetting) == {}

    asyncio.run(run())


def test_a_voter_that_is_taken_out_loses_its_right_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So what breaks off is repeated; it is not chosen again, and one that has to stay keeps its right.

    And once more afterwards: it may have been promoted a moment before, and its right comes a moment later.
    """
    etcd, done, failing = Etcd(monkeypatch, tmp_path), list[str](), True

    def noted(word: str) -> Callable[..., Coroutine[object, object, None]]:
        async def note(*_: object) -> None:
            done.append(word)
            if word == "remove" and failing:
                raise Unavailable("etcd refuses it")

        return note

    for name in ("retire", "enrol"):
        monkeypatch.setattr(Vault, name, noted(name))
    monkeypatch.setattr(member_list, "remove", noted("remove"))
    seen = tuple(Seen(id=host, host=host, healthy=99) for host in ("a", "b"))

    async def members(_: VoterControl) -> tuple[Seen, ...]:
        return seen

    monkeypatch.setattr(VoterControl, "members", members)
    monkeypatch.setattr(Vault, "gateway", mock.Mock())

    async def run() -> None:
        nonlocal failing, seen
        control = VoterControl(etcd.vault, "a", Records(), print)
        await etcd.vault.put({HOSTS + "b": (joined("b"), 0)})
        with pytest.raises(Unavailable):
            await control.take_out("b", "b")
        assert done == ["retire", "remove", "enrol"]
        failing = False
        await control.take_out("b", "b")
        assert done[3:] == ["retire", "remove", "retire"]
        known, _ = await etcd.vault.get(HOSTS + "b", JoinedHost)
        assert known is not None
        assert not known.member
        seen = seen[:1]
        await control.take_out("b", "b")
        assert done[6:] == ["retire"]
        with pytest.raises(Conflict):
            await control.take_out("a", "a")
        assert len(done) == 7

    asyncio.run(run())


def test_a_learner_whose_host_has_left_is_taken_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is kept of the host any more, or that it is forgotten."""
    etcd, done = Etcd(monkeypatch, tmp_path), list[str]()

    async def remove(_gateway: Gateway, id_: str) -> None:
        done.append(id_)

    async def members(_: VoterControl) -> tuple[Seen, ...]:
        return (Seen(id="1", host="a", leader=True, healthy=99), Seen(id="2", host="", learner=True, healthy=1))

    monkeypatch.setattr(member_list, "remove", remove)
    monkeypatch.setattr(VoterControl, "members", members)
    monkeypatch.setattr(Vault, "gateway", mock.Mock())

    async def run() -> None:
        await etcd.vault.put({TURN: (Turn(by="a", at=0.0, host="b", address="192.0.2.2"), 0)})
        await VoterControl(etcd.vault, "a", Records(), lambda _: None).look()
        assert done == ["2"]

    asyncio.run(run())
