"""Member list of linkspan's own etcd: who its voters and learners are, and the requests that change it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container, Iterable

import msgspec

from linkspan.cluster.founding.etcd_service import VOTER
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.addresses import place
from linkspan.core.errors import Invalid, LinkspanError, Unavailable
from linkspan.core.store_url import OWN_SIGNER
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_errors import Refused
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_wire import Json, Member, Members, decode

ADD_SECONDS = 10.0
"""Seconds for a change of the members: etcd agrees on it with all of them first."""
SETTLE_SECONDS = 15.0
"""Seconds for connections between voters to count as healthy, and for an election after a voter has stopped."""
AGAIN = 0.5
PASSING = ("unhealthy cluster", "server stopped", "leader changed", "no leader")
"""What etcd says while that lasts."""
LOOK = 2.0
"""Seconds for another voter to tell its members."""


class _Added(msgspec.Struct, frozen=True):
    member: Member


async def listed(gateway: Gateway, *, agreed: bool = False) -> tuple[Member, ...]:
    """Return etcd's members; ``agreed``: as a quorum of them knows it, not only the one that answers.

    Raises Unavailable.
    """
    body: Json = {"linearizable": True} if agreed else {}
    return (await gateway.ask("/v3/cluster/member/list", body, Members)).members


async def answering(url: str, seconds: float) -> tuple[Member, ...]:
    """Return the members of an etcd that has a quorum, none if it does not answer within ``seconds``."""
    store = EtcdStore(url)
    try:
        async with asyncio.timeout(seconds):
            return await listed(store.gateway, agreed=True)
    except (LinkspanError, TimeoutError):
        return ()
    finally:
        await store.close()


async def is_replaced(files: TrustFiles, others: Iterable[str], host: str, address: str) -> bool:
    """Return whether a quorum at one of the ``others`` (HOST:PORT of etcd) does not have a host among its members.

    Each is asked by itself. After a restore on one voter the others may still be a quorum of the former cluster.
    """
    found = await asyncio.gather(*(answering(files.url([one], host), LOOK) for one in others))
    return any(members and not has(members, host, {address}) for members in found)


def has(members: Iterable[Member], host: str, addresses: Container[str]) -> bool:
    """Return whether a host is among members, by its name in etcd or by one of its addresses."""
    return any(host_of(one) == host or address(one) in addresses for one in members)


def host_of(member: Member) -> str:
    """Return the id of a member's host, '' before it has started."""
    return member.name.removeprefix(VOTER) if member.name.startswith(VOTER) else ""


def endpoints(members: Iterable[Member]) -> tuple[str, ...]:
    """Return HOST:PORT of each voter for clients, sorted; a learner answers nobody, and its name comes at its start."""
    voters = (one for one in members if host_of(one) and not one.learner)
    return tuple(sorted({_place(url) for one in voters for url in one.clients[:1]}))


def signers(places: Iterable[str]) -> tuple[str, ...]:
    """Return HOST:PORT of the signers beside these endpoints of etcd."""
    return tuple(f"{one.rpartition(':')[0]}:{OWN_SIGNER}" for one in places)


def address(member: Member) -> str:
    """Return the address at which a member's host is for other voters, '' if it advertises none."""
    for url in member.peers:
        try:
            return place(_place(url))[0].address
        except Invalid:
            continue
    return ""


def _place(url: str) -> str:
    return url.rpartition("://")[2].rstrip("/")


async def add_learner(gateway: Gateway, peers: str) -> str:
    """Add a learner at HOST:PORT for other voters; return its id. Raises Unavailable with etcd's reason."""
    body: Json = {"peerURLs": [f"https://{peers}"], "isLearner": True}
    text = await gateway.at(gateway.endpoint, "/v3/cluster/member/add", body, ADD_SECONDS)
    return decode(text, _Added).member.id


async def promote(gateway: Gateway, id_: str, leader: str) -> None:
    """Make a learner a voter. Raises Unavailable: etcd refuses it while the learner lags behind.

    The member with the id ``leader`` is asked. Any other one passes the request on to it without the user, and is
    refused again and again (etcd 3.5, with users on).
    """
    at = [place for one in await listed(gateway) if one.id == leader for place in endpoints([one])]
    await gateway.at((at or [gateway.endpoint])[0], "/v3/cluster/member/promote", {"ID": id_}, ADD_SECONDS)


async def remove(gateway: Gateway, id_: str) -> None:
    """Take a member out, if it is one. Raises Unavailable: etcd refuses it if its quorum would be lost.

    etcd also refuses it while the others are connected for less than five seconds (its HealthInterval): this waits. The
    member that is asked may stop at that moment, above all if it is the one that goes. Then another one is asked, which
    may find that it is gone.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            await gateway.call("/v3/cluster/member/remove", {"ID": id_}, ADD_SECONDS)
        except Refused as error:
            if not error.missing:
                raise
        except Unavailable as error:
            if not any(word in error.message for word in PASSING) or time.monotonic() > deadline:
                raise
            await asyncio.sleep(AGAIN)
            continue
        return


async def move(gateway: Gateway, id_: str, peers: str) -> None:
    """Write down another HOST:PORT of a member for other voters. Raises Unavailable."""
    body: Json = {"ID": id_, "peerURLs": [f"https://{peers}"]}
    await gateway.call("/v3/cluster/member/update", body, ADD_SECONDS)
