"""Joins and exclusion: hosts that join at once, and what a forgotten host can still do with its key and its tokens."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from linkspan.cluster.founding import certificates, exclusion, revocation
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.handover import TURN, Handover, Turn
from linkspan.cluster.founding.join_token import KEPT_SECONDS, TokenRecord
from linkspan.cluster.founding.signer import (
    HOSTS,
    MOST_SERIALS,
    REVOKED,
    TOKENS,
    JoinedHost,
    Revoked,
    with_serials,
)
from linkspan.core.errors import Conflict, Denied, NotFound
from linkspan.store.vault import Vault
from support.memory_vault import Etcd


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Etcd:
    """Give an etcd."""
    return Etcd(monkeypatch, tmp_path)


def test_a_forgotten_host_lets_itself_in_by_no_token_that_it_used(etcd: Etcd) -> None:
    """It knows them all, and a new key is made at once; the tokens of others stay good."""

    async def run() -> None:
        for id_, uses in (("a1", 0), ("b2", 1), ("c3", 0)):
            await etcd.token(id_, uses)
        key = certificates.new_key()
        await etcd.join("h2", "b2", key)
        await etcd.join("h2", "a1", key)
        await etcd.join("h3", "c3", certificates.new_key())
        await etcd.forget("h2", known=True)
        assert await etcd.states() == {"a1": "revoked", "b2": "revoked", "c3": "valid"}
        for id_ in ("a1", "b2"):
            with pytest.raises(Denied, match=f"token {id_} is revoked"):
                await etcd.join("h2", id_, certificates.new_key())
        assert "h2" not in etcd.passwords
        await etcd.token("d4")
        with pytest.raises(Conflict, match="was forgotten"):
            await etcd.join("h2", "d4", key)
        await etcd.join("h2", "d4", certificates.new_key())
        assert "h2" in etcd.passwords

    asyncio.run(run())


def test_a_host_that_is_forgotten_twice_comes_back_only_as_a_new_one(etcd: Etcd) -> None:
    """The first time removed its records, so the second time finds none: its addresses may be those of others."""

    async def run() -> None:
        await etcd.token("a1")
        key = certificates.new_key()
        await etcd.join("h2", "a1", key)
        await etcd.forget("h2", known=True)
        await etcd.forget("h2", known=False)
        await etcd.token("b2")
        with pytest.raises(Conflict, match="was forgotten"):
            await etcd.join("h2", "b2", key)

    asyncio.run(run())


def test_a_host_whose_join_broke_off_may_come_back_with_its_key(etcd: Etcd) -> None:
    """It never had an address."""

    async def run() -> None:
        await etcd.token("a1")
        key = certificates.new_key()
        await etcd.join("h2", "a1", key)
        await etcd.forget("h2", known=False)
        assert await etcd.vault.all(HOSTS, JoinedHost) == {}
        await etcd.token("b2")
        await etcd.join("h2", "b2", key)

    asyncio.run(run())


def test_hosts_that_join_at_once_take_turns(etcd: Etcd) -> None:
    """Otherwise each of them makes the login of the other ones old, and some are refused."""

    async def run() -> None:
        await etcd.token("a1")
        await asyncio.gather(*(etcd.join(f"h{number}", "a1", certificates.new_key()) for number in range(8)))
        assert len(etcd.passwords) == 8
        assert etcd.most_changing == 1

    asyncio.run(run())


def test_a_token_that_expired_long_ago_is_deleted_with_the_next_join(etcd: Etcd) -> None:
    """One that expired lately is still listed."""

    async def run() -> None:
        await etcd.token("a1")
        for id_, ago in (("b2", 60.0), ("c3", KEPT_SECONDS + 60)):
            then = time.time() - ago
            await etcd.vault.put({TOKENS + id_: (TokenRecord(hash="", created=then, expires=then), 0)})
        await etcd.join("h2", "a1", certificates.new_key())
        assert await etcd.states() == {"a1": "valid", "b2": "expired"}

    asyncio.run(run())


def test_a_host_with_many_certificates_is_forgotten_whole(etcd: Etcd) -> None:
    """More than some transactions hold: a host must not make itself impossible to forget."""

    async def run() -> None:
        await etcd.token("a1")
        await etcd.join("h2", "a1", certificates.new_key())
        joined, revision = await etcd.vault.get(HOSTS + "h2", JoinedHost)
        assert joined is not None
        many = with_serials(joined, *(f"{number:x}" for number in range(1, MOST_SERIALS + 100)))
        await etcd.vault.put({HOSTS + "h2": (many, revision)})
        await etcd.forget("h2", known=True)
        assert len(etcd.published) == MOST_SERIALS
        assert f"{MOST_SERIALS + 99:x}" in etcd.published  # the oldest ones expired long ago

    asyncio.run(run())


def test_a_repeated_join_gives_the_same_certificate(etcd: Etcd) -> None:
    """However often it is repeated, the vault has one serial number more at most."""

    async def run() -> None:
        await etcd.token("a1")
        await etcd.token("b2")
        key = certificates.new_key()
        given = {(await etcd.join("h2", token, key)).certificate for token in ("a1", "a1", "b2", "a1")}
        joined, _ = await etcd.vault.get(HOSTS + "h2", JoinedHost)
        assert joined is not None
        assert (len(given), len(joined.serials)) == (1, 1)

    asyncio.run(run())


def test_a_host_that_left_may_come_back_with_another_key(etcd: Etcd) -> None:
    """Its user and its certificates have ended, and its token is still good: it left by its own wish."""

    async def run() -> None:
        await etcd.token("a1")
        await etcd.join("h2", "a1", certificates.new_key())
        await exclusion.release(etcd.vault, "h2")
        assert "h2" not in etcd.passwords
        revoked = await etcd.vault.all(REVOKED, Revoked)
        assert [one.cut for one in revoked.values()] == [False]
        await exclusion.release(etcd.vault, "h2")
        await etcd.join("h2", "a1", certificates.new_key())
        joined, _ = await etcd.vault.get(HOSTS + "h2", JoinedHost)
        assert joined is not None
        assert not joined.forgotten

    asyncio.run(run())


def test_a_token_that_is_used_up_lets_nobody_in_as_a_host_that_left(etcd: Etcd) -> None:
    """A thief of the token may know the host's id, and takes a key of its own."""

    async def run() -> None:
        await etcd.token("a1", 1)
        key = certificates.new_key()
        for _ in range(2):
            await etcd.join("h2", "a1", key)
        await exclusion.release(etcd.vault, "h2")
        with pytest.raises(Denied, match="token a1 is used up"):
            await etcd.join("h2", "a1", certificates.new_key())
        assert "h2" not in etcd.passwords

    asyncio.run(run())


def test_a_host_that_left_can_still_be_forgotten(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have kept a connection and its token on purpose: voters restart their etcd, and the token ends."""
    restarted: list[str] = []

    class Service(EtcdService):
        def __init__(self) -> None:
            pass

        def put(self, name: str, content: bytes) -> None:
            assert (name, bool(content)) == ("revoked.der", True)

    async def restart(_vault: Vault, _service: object, host: str) -> None:
        restarted.append(host)

    monkeypatch.setattr(revocation, "restart_in_turn", restart)
    voter = revocation.Revocation(etcd.files, etcd.vault, Service(), "h1")

    async def run() -> None:
        await etcd.token("a1")
        await etcd.join("h2", "a1", certificates.new_key())
        await exclusion.release(etcd.vault, "h2")
        await voter.look()
        assert restarted == []
        id_ = exclusion.forgettable(await etcd.vault.all(HOSTS, JoinedHost), "h2", {}, lambda _: None)
        await exclusion.exclude(etcd.vault, id_, voter.look, known=False)
        assert restarted == ["h1"]
        assert await etcd.states() == {"a1": "revoked"}
        await voter.look()
        assert restarted == ["h1"]

    asyncio.run(run())


def test_an_earlier_key_of_an_id_gets_nothing(etcd: Etcd) -> None:
    """The key was stolen, and its host was forgotten and set up again with the same id: the thief has only the past."""

    async def ask(path: str, certificate: str) -> object:
        tls = mock.Mock()
        tls.getpeercert.return_value = ssl.PEM_cert_to_DER_cert(certificate)
        transport = mock.Mock()
        transport.get_extra_info.side_effect = lambda name, *_: tls if name == "ssl_object" else None
        payload = mock.Mock(readany=mock.AsyncMock(side_effect=[b'{"minor": "3.5"}', b""]))
        request = make_mocked_request("POST", path, transport=transport, payload=payload)
        return await Handover(etcd.files, etcd.vault).handlers()[path](request)

    async def run() -> None:
        await etcd.token("a1")
        stolen = (await etcd.join("h2", "a1", certificates.new_key())).certificate
        await etcd.forget("h2", known=True)
        for path in ("/v1/leave", "/v1/voter"):
            with pytest.raises(Denied, match="is not in the cluster any more"):
                await ask(path, stolen)
        await etcd.token("b2", member=True)
        await etcd.join("h2", "b2", certificates.new_key())
        await etcd.vault.put({TURN: (Turn(by="h1", at=0.0, host="h2", address="192.0.2.2"), 0)})
        for path in ("/v1/leave", "/v1/voter"):
            with pytest.raises(Denied, match="is not in force any more"):
                await ask(path, stolen)
        assert "h2" in etcd.passwords

    asyncio.run(run())


def test_a_repeated_join_makes_no_demoted_host_a_member_again(etcd: Etcd) -> None:
    """Its token did that once; another token of members is an operator's word."""

    async def run() -> None:
        for token in ("a1", "b2"):
            await etcd.token(token, member=True)
        key = certificates.new_key()
        for token, member in (("a1", True), ("a1", False), ("b2", True)):
            await etcd.join("h2", token, key)
            joined, revision = await etcd.vault.get(HOSTS + "h2", JoinedHost)
            assert joined is not None
            assert joined.member is member
            demoted = msgspec.structs.replace(joined, member=False)
            await etcd.vault.put({HOSTS + "h2": (demoted, revision)})

    asyncio.run(run())


def test_only_a_token_that_allows_it_lets_a_host_become_a_voter(etcd: Etcd) -> None:
    """A later join by another token takes nothing away."""

    async def run() -> None:
        await etcd.token("a1")
        await etcd.token("b2", member=True)
        key = certificates.new_key()
        for token, member in (("a1", False), ("b2", True), ("a1", True)):
            await etcd.join("h2", token, key)
            joined, _ = await etcd.vault.get(HOSTS + "h2", JoinedHost)
            assert joined is not None
            assert joined.member is member

    asyncio.run(run())


def test_nobody_joins_under_a_word_by_which_an_operator_means_another_host(etcd: Etcd) -> None:
    """Its id is another one's name: `cluster promote node2` would give a stranger the cluster's keys."""

    async def run() -> None:
        await etcd.token("a1")
        await etcd.join("f00d", "a1", certificates.new_key(), "node2")
        with pytest.raises(Conflict, match=r"id node2 is the name of another host in the cluster, node2 \(f00d\)"):
            await etcd.join("node2", "a1", certificates.new_key(), "web")
        with pytest.raises(Conflict, match=r"name f00d is the id of another host in the cluster, node2 \(f00d\)"):
            await etcd.join("cafe", "a1", certificates.new_key(), "f00d")
        assert [*etcd.passwords] == ["f00d"]
        await etcd.join("beef", "a1", certificates.new_key(), "node2")  # a name may be shared: it selects none of them
        for host in ("f00d", "beef"):
            await etcd.forget(host, known=True)
        await etcd.token("b2")
        await etcd.join("node2", "b2", certificates.new_key())

    asyncio.run(run())


def kept(name: str, *, forgotten: bool = False) -> JoinedHost:
    """Return what is kept of a host."""
    return JoinedHost(name, "key", (), "t", 0.0, forgotten=forgotten)


def test_a_host_is_meant_by_its_id_or_by_a_name_that_it_alone_has() -> None:
    """Also by the name that it got since it joined; a host that calls itself as another one makes no word its own."""
    hosts = {"f00d": kept("node"), "cafe": kept("node"), "gone": kept("node", forgotten=True)}
    for word in ("node", "both"):
        with pytest.raises(Conflict, match=f"2 hosts are called {word}"):
            exclusion.named(hosts, word, {"f00d": "both", "cafe": "both"})
    assert exclusion.named(hosts, "node2", {"f00d": "node", "cafe": "node2"}) == "cafe"
    assert exclusion.named(hosts, "cafe", {"f00d": "cafe"}) == "cafe"
    for word in ("nobody", "gone"):  # a forgotten host becomes no voter
        with pytest.raises(NotFound) as missing:
            exclusion.named(hosts, word, {"cafe": "node2"})
    assert missing.value.hint == "its hosts: node, node2"


def test_a_living_host_is_not_forgotten_by_a_name_that_it_shares() -> None:
    """A restore brings the record of its predecessor back, forgotten or not; the error says which of the two lives."""
    for forgotten in (False, True):
        hosts = {"0ld": kept("h3", forgotten=forgotten), "new": kept("h3")}
        names = {"0ld": "h3", "new": "h3"}
        with pytest.raises(Conflict) as refused:
            exclusion.forgettable(hosts, "h3", names, {"0ld": False, "new": True}.get)
        before = ", and was forgotten before" if forgotten else ""
        assert refused.value.message == f"2 hosts are called h3: 0ld (it does not live{before}), new (it lives)"
        assert refused.value.hint == "to forget the one that does not live: linkspan cluster forget 0ld"
        for id_ in names:
            assert exclusion.forgettable(hosts, id_, names, lambda _: None) == id_
        with pytest.raises(Conflict, match="2 hosts are called h3"):  # it joined after the snapshot
            exclusion.forgettable({"0ld": hosts["0ld"]}, "h3", names, lambda _: None)
    assert exclusion.forgettable(hosts, "h3", {"new": "h3"}, lambda _: True) == "new"  # nothing is left of the other


def test_a_forget_that_broke_off_is_repeated_by_name_among_hosts_of_that_name_that_are_gone() -> None:
    """The one that still has a record is meant; without any, or with several, the name says nothing."""
    gone = {id_: kept("node", forgotten=True) for id_ in ("f00d", "cafe", "beef")}

    def forgettable(word: str, names: dict[str, str]) -> str:
        return exclusion.forgettable(gone, word, names, lambda _: False)

    assert forgettable("node", {"cafe": "node"}) == "cafe"
    assert forgettable("new", {"cafe": "new"}) == "cafe"
    assert exclusion.forgettable({"f00d": gone["f00d"]}, "node", {}, lambda _: False) == "f00d"
    for names in ({}, {"cafe": "node", "beef": "node"}):
        with pytest.raises(Conflict, match="hosts are called node") as refused:
            forgettable("node", names)
        assert refused.value.hint == "give the id of the one to forget: linkspan cluster forget ID"
    with pytest.raises(NotFound, match="no host nobody is in this cluster"):
        forgettable("nobody", {})


def test_a_host_of_which_only_a_record_is_left_can_be_forgotten() -> None:
    """It joined after the snapshot that was restored, and will not come back."""
    assert exclusion.forgettable({}, "late", {"f00d": "late"}, lambda _: False) == "f00d"


class BrokenOff(Exception):
    """The voter's agent was killed."""


@contextlib.contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Kill a voter before its change of the vault or of the users with this number; give the changes it has made."""
    made: list[int] = []

    def counted(change: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def carried_out(*args: Any, **more: Any) -> object:
            if len(made) == step:
                raise BrokenOff
            made.append(step)
            return await change(*args, **more)

        return carried_out

    with monkeypatch.context() as patch:
        patch.setattr(Vault, "put", counted(Vault.put))
        for name in ("admit", "dismiss"):  # the test's own, which know their vault
            patch.setattr(Vault, name, staticmethod(counted(getattr(Vault, name))))
        yield made


@pytest.mark.parametrize("what", ["join", "forget", "leave"])
def test_what_a_killed_voter_began_is_done_by_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Wherever it was killed: the end is as if it had not been."""

    async def done(etcd: Etcd, key: bytes) -> None:
        if what == "join":
            await etcd.join("h2", "a1", key)
        elif what == "forget":
            await etcd.forget("h2", known=True)
        else:
            await exclusion.release(etcd.vault, "h2")

    async def found(step: int) -> tuple[object, int]:
        """Return all that is left if it was killed at a step, and how many there were."""
        etcd, key = Etcd(monkeypatch, tmp_path / f"{what}-{step}"), certificates.new_key()
        for token, uses in (("a1", 1), ("b2", 0)):
            await etcd.token(token, uses)
        if what != "join":
            for token in ("a1", "b2"):
                await etcd.join("h2", token, key)
        with killed_at(step, monkeypatch) as made, contextlib.suppress(BrokenOff):
            await done(etcd, key)
        await done(etcd, key)
        hosts = await etcd.vault.all(HOSTS, JoinedHost)
        kept = {id_: (host.token, host.forgotten, host.recorded, len(host.serials)) for id_, host in hosts.items()}
        revoked = [(one.host, one.cut) for one in (await etcd.vault.all(REVOKED, Revoked)).values()]
        with pytest.raises(Conflict) if what == "forget" else contextlib.nullcontext():
            await etcd.token("c3")
            await etcd.join("h2", "c3", key if what != "leave" else certificates.new_key())
        return (kept, revoked, await etcd.states(), sorted(etcd.passwords)), len(made)

    async def run() -> None:
        whole, steps = await found(99)
        assert steps >= 2
        for step in range(steps):
            assert (await found(step))[0] == whole, step

    asyncio.run(run())
