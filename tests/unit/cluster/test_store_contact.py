"""Knowledge of other hosts while the store is slow, away, or silent."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from linkspan.agent import store_health
from linkspan.agent.store_health import StoreHealth
from linkspan.cluster.founding.etcd_service import VOTER
from linkspan.core.errors import Full, Unavailable
from linkspan.core.store_contract import Batch, Record
from linkspan.core.store_url import HOST_USER
from linkspan.store import contact
from linkspan.store.contact import STALE, Contact
from linkspan.store.etcd_status import NOSPACE, EtcdStatus, MemberStatus
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.upkeep import Upkeep
from support.polling import eventually
from support.records.replicas import Member, together


class Clock:
    """The clock that nobody sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(contact, "now", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock that the module under test reads."""
    return Clock(monkeypatch)


def _health(one: Member, *, shared: bool = True, etcd: EtcdStatus | None = None) -> StoreHealth:
    """Return the store's health as a host sees it that has just started; ``etcd`` is what it saw of etcd."""
    one.hosts.shared = shared
    upkeep = Upkeep(one.replica, None, "h1", "compact", lambda _what: None, lambda _verb: None)
    upkeep.etcd = etcd or EtcdStatus()
    return StoreHealth(one.replica, one.remote, one.hosts, upkeep, lambda: "etcd://203.0.113.1", time.time())


async def _two_hosts(folder: Path) -> Member:
    one = Member(Memory(), folder, "h1")
    await one.store.transaction({"hosts/h2": b'{"id": "h2", "name": "h2"}'})
    await one.store.transaction({"alive/h2": b"x"}, ttl=60)
    await one.replica.start()
    return one


def test_a_voter_is_named_as_its_host_and_an_old_finding_says_its_age(tmp_path: Path) -> None:
    """Etcd knows it by its host's id. An etcd that is well is looked at every two minutes only."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.store.transaction({"hosts/24ad03": b'{"id": "24ad03", "name": "web2"}'})
        await one.replica.start()
        kept = Upkeep(one.replica, None, "h1", "compact", lambda _what: None, lambda _verb: None)
        url = f"etcd://203.0.113.1:5379/c?user={HOST_USER}h1&password-file=/secret"
        health = StoreHealth(one.replica, one.remote, one.hosts, kept, lambda: url, time.time())

        def problems() -> list[dict[str, str]]:
            told = health.told()["etcd"]
            assert isinstance(told, dict)
            return [found for found in told["problems"] if "not seen" in found["what"]]

        away = MemberStatus("2", f"{VOTER}24ad03", problem="connection refused")
        kept.etcd = EtcdStatus(time.time(), (MemberStatus("1", f"{VOTER}h1", version="3.5.16"), away))
        (fresh,) = problems()
        assert fresh["what"] == "the voter web2 is not seen: connection refused"
        assert "start host web2" in fresh["fix"]
        kept.etcd = msgspec.structs.replace(kept.etcd, at=time.time() - 80)
        (old,) = problems()
        assert old["what"] == "the voter web2 is not seen: connection refused (as of 80 s ago)"
        await one.replica.stop()

    together(work)


def test_hosts_are_unknown_once_the_store_has_told_nothing_for_a_while(tmp_path: Path, clock: Clock) -> None:
    """The copied records still say that h2 is alive; without the store no host can know."""

    async def work() -> None:
        one = await _two_hosts(tmp_path)
        assert (one.hosts.lives("h2"), one.hosts.lives("h1")) == (True, True)
        one.store.cut()
        clock.now += STALE
        assert one.hosts.lives("h2") is True
        clock.now += 0.1
        assert (one.hosts.lives("h2"), one.hosts.lives("h1")) == (None, True)
        assert _health(one).unknown() == ["h2"]
        await one.replica.stop()

    together(work)


def test_the_steps_of_a_full_store_have_the_age_of_the_look_behind_them(tmp_path: Path) -> None:
    """The operator may have done one of them since, and `status` does not look again."""

    async def work() -> None:
        one = await _two_hosts(tmp_path)
        one.replica.note_room(full=True)
        for age, dated in ((1.0, False), (30.0, True)):
            member = MemberStatus("id-m0", "m0", "192.0.2.9:2379", "3.5.16", 100, 100, 100, leader=True)
            etcd = EtcdStatus(time.time() - age, (member,), (("id-m0", NOSPACE),))
            state, _, fix = _health(one, etcd=etcd).state()
            assert (state, "alarm disarm" in fix) == ("full", True)
            assert ("as of 30 s ago" in fix) == dated
        await one.replica.stop()

    together(work)


def test_a_host_whose_record_is_gone_is_silent_and_was_seen_until_then(tmp_path: Path) -> None:
    """While its record is there it is seen as long as the store answers."""

    async def work() -> None:
        one = await _two_hosts(tmp_path)
        before = one.replica.contact.seen("h2")
        assert before is not None
        assert time.time() - before < 60
        await one.store.transaction({}, deletes=["alive/h2"])
        await eventually(lambda: one.hosts.lives("h2") is False, "h2 is silent")
        gone = one.replica.contact.seen("h2")
        assert gone is not None
        assert before <= gone < before + 60
        one.replica.contact.told(Batch(99))
        assert one.replica.contact.seen("h2") == gone
        assert one.replica.contact.seen("h9") is None
        await one.replica.stop()

    together(work)


def test_a_host_that_came_back_is_seen_again_and_its_end_is_told_once() -> None:
    """The store is listed again after each lost watch; then records that were gone already are missing."""
    known = Contact()
    known.told(Batch(7, (Record("alive/h2", b"x", 7),)))
    first = known.seen("h2")
    known.told(Batch(8))
    later = known.seen("h2")
    assert first is not None
    assert later is not None
    assert later > first
    known.told(Batch(9, (), ("alive/h2", "alive/h3")))
    gone = known.seen("h2")
    known.told(Batch(10, (), ("alive/h2",)))
    assert known.seen("h2") == gone
    assert known.seen("h3") is None
    known.told(Batch(11, (Record("alive/h2", b"x", 11),)))
    back = known.seen("h2")
    assert gone is not None
    assert back is not None
    assert back > gone


def test_a_store_that_is_away_slow_or_stuck_is_told_apart(tmp_path: Path, clock: Clock) -> None:
    """Away and stuck are problems; a slow store is good enough to continue, with a warning."""

    async def work() -> None:
        one = await _two_hosts(tmp_path)
        health = _health(one)
        assert health.state() == ("ok", "", "")
        one.replica.contact.wrote(contact.SLOW + 1)
        assert health.state()[:2] == ("slow", "it is slow: its last answer took 2.0 s")
        assert health.told()["ok"] is True
        (check,) = await health.checks()
        assert (check.check, check.status) == ("store", "warn")
        clock.now += contact.RECENT
        one.replica.contact.told(Batch(1))
        assert health.state()[0] == "ok", "nobody has written since, and a keepalive is no write"
        clock.now += STALE + 1
        assert health.state()[0] == "stale"
        checks = {c.check: c.status for c in await health.checks()}
        assert checks == {"store": "fail", "hosts": "warn"}
        one.store.cut()
        with pytest.raises(Unavailable):
            await one.replica.write({"hosts/h1": b"x"})
        assert health.state()[0] == "away"
        assert health.told()["ok"] is False
        await one.replica.stop()

    together(work)


def test_doctor_says_that_a_full_store_lets_nobody_say_that_it_lives(tmp_path: Path) -> None:
    """A host that is missing there is unknown."""

    async def work() -> None:
        one = await _two_hosts(tmp_path)
        await one.store.transaction({"hosts/h3": b'{"id": "h3", "name": "h3"}'})
        await eventually(lambda: one.hosts.lives("h3") is False, "h3 is known, and silent")
        one.memory.full = True
        await one.replica.absences.look()
        assert (one.hosts.lives("h2"), one.hosts.lives("h3")) == (True, None)
        found = await _health(one).checks()
        assert [c.detail for c in found if c.check == "hosts"] == [
            "liveness of h3 is unknown: the store is full, so hosts cannot renew their liveness"
        ]
        await one.replica.stop()

    together(work)


def test_a_write_that_a_full_store_refused_is_no_problem_once_it_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may write for long, and claims wait for the problem's end: a look that finds room ends it."""

    async def refuse(*_arguments: object, **_more: object) -> int:
        raise Full("store etcd h:2379: its quota is full, so it takes no writes", "make room")

    async def work() -> None:
        one = await _two_hosts(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(MemoryStore, "transaction", refuse)
            with pytest.raises(Full):
                await one.replica.write({"networks/demo": b"{}"})
        assert (one.replica.settled, one.replica.contact.full) == (False, True)
        one.replica.note_room(full=False)
        assert (one.replica.settled, one.replica.contact.full) == (True, False)
        await one.replica.stop()

    together(work)


def test_a_delete_says_nothing_of_a_full_store(tmp_path: Path) -> None:
    """A store takes those all the time; so the end of an endpoint is no sign that it takes writes again."""

    async def work() -> None:
        one = await _two_hosts(tmp_path)
        one.replica.note_room(full=True)
        await one.replica.write({}, deletes=["endpoints/h1/c/eth0"])
        assert one.replica.contact.full
        await one.replica.write({"endpoints/h1/c/eth0": b"{}"})
        assert not one.replica.contact.full
        await one.replica.stop()

    together(work)


def test_doctor_asks_the_store_and_does_not_wait_for_the_next_write(tmp_path: Path) -> None:
    """In the first seconds after a cut nothing has failed yet: status cannot know, and doctor finds out."""

    async def work() -> None:
        one = await _two_hosts(tmp_path)
        health = _health(one)
        (check,) = await health.checks()
        assert (check.check, check.status) == ("store", "ok")
        one.store.cut()
        assert health.state()[0] == "ok"
        (check,) = await health.checks()
        assert (check.status, "the connection is cut" in check.detail, bool(check.fix)) == ("fail", True, True)
        await one.replica.stop()

    together(work)


def test_a_store_that_hangs_keeps_doctor_for_its_patience_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several endpoints that do not answer would take many seconds."""

    async def work() -> None:
        one = await _two_hosts(tmp_path)
        monkeypatch.setattr(store_health, "PATIENCE", 0.05)
        monkeypatch.setattr(one.store, "get", lambda _key: asyncio.Event().wait())
        (check,) = await _health(one).checks()
        assert (check.status, "no answer within" in check.detail) == ("fail", True)
        await one.replica.stop()

    together(work)


def test_an_agent_whose_store_has_not_answered_since_its_start_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It serves its snapshot; a store without a failed call yet is not ok for that reason."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.store.transaction({"hosts/h2": b'{"id": "h2", "name": "h2"}'})
        await one.replica.start()
        await one.replica.stop()
        monkeypatch.setattr("linkspan.store.replica.FIRST_ANSWER", 0.05)
        again = Member(memory, tmp_path, "h1")
        monkeypatch.setattr(again.store, "list", lambda _prefix: asyncio.Event().wait())
        await again.replica.start()
        health = _health(again)
        now, why, _ = health.state()
        assert (now, "has not answered since the agent started" in why) == ("away", True)
        assert health.told()["answered"] is None
        assert again.hosts.lives("h2") is None
        await again.replica.stop()

    together(work)


def test_a_host_that_is_alone_needs_to_hear_nothing(tmp_path: Path, clock: Clock) -> None:
    """Its own store sends no event for hours, because nobody writes: that is ok."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        clock.now += 86400
        assert _health(one, shared=False).state() == ("ok", "", "")
        assert [c.status for c in await _health(one, shared=False).checks()] == ["ok"]
        await one.replica.stop()

    together(work)
