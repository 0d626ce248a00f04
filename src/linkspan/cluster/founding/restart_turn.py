"""Turn of a restart: one voter's etcd restarts while no other one does, and while the others can do without it.

The turn is a value in the vault that ends by itself, so an agent that is killed holds up nobody for long. Whoever has
it looks whether the others answer, and keeps it until its own etcd answers again. One that does not come back is missed
by the next voter that looks: so a fault that every voter has ends one etcd, and not all of them.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import msgspec

from linkspan.cluster.founding import member_list
from linkspan.cluster.founding.signer import HOSTS, JoinedHost
from linkspan.cluster.founding.voting import quorum
from linkspan.core.errors import Unavailable
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_wire import decode
from linkspan.store.vault import Vault

RESTART = "voting/restart"
"""The vault's key of the voter whose etcd restarts now."""
RESTART_SECONDS = 20.0
"""Seconds for which one voter has the turn, and for which another one waits for it at a time."""
BACK_SECONDS = 30.0
"""Seconds for an etcd to answer after its restart."""
ANSWER_SECONDS = 3.0
"""Seconds for one voter's answer."""
AGAIN = 0.2


class Restarting(msgspec.Struct, frozen=True):
    """The host whose etcd restarts, so that no other one does."""

    host: str


class Restarts(Protocol):
    """A voter's etcd that can be restarted."""

    @property
    def place(self) -> str:
        """HOST:PORT at which it is for clients."""

    async def restart(self) -> None:
        """End it, with all its connections, and start it again."""


class _Header(msgspec.Struct, frozen=True):
    member_id: str = ""


class Standing(msgspec.Struct, frozen=True):
    """An etcd's answer: its own id, and that of the leader that it follows, '' if it has none."""

    header: _Header = _Header()
    leader: str = ""

    @property
    def leads(self) -> bool:
        """Return whether it is the leader."""
        return bool(self.leader) and self.leader == self.header.member_id


async def standing(gateway: Gateway, place: str) -> Standing | None:
    """Return what the etcd at HOST:PORT says, None if it does not answer, or follows no leader."""
    try:
        found = decode(await gateway.at(place, "/v3/maintenance/status", {}, ANSWER_SECONDS), Standing)
    except Unavailable:
        return None
    return found if found.leader not in ("", "0") else None


async def places(gateway: Gateway) -> dict[str, str]:
    """Return HOST:PORT of etcd on each voter, by its host's id; a learner is none yet. Raises Unavailable."""
    found = await member_list.listed(gateway)
    return {member_list.host_of(one): member_list.endpoints([one])[0] for one in found if member_list.endpoints([one])}


def dispensable(answering: int, others: int) -> bool:
    """Return whether one voter's etcd may restart while so many of the others answer. Pure.

    If all do, it may, although one of two voters always ends the quorum for a moment.
    """
    return answering == others or answering >= quorum(others + 1)


async def restart_in_turn(vault: Vault, service: Restarts, host: str) -> None:
    """Restart this voter's etcd while no other voter's restarts, and wait until it answers.

    Raises LinkspanError if it was not restarted: the next try may do it.
    """
    deadline = time.monotonic() + RESTART_SECONDS
    while not await vault.hold(RESTART, Restarting(host), RESTART_SECONDS):
        held, _ = await vault.get(RESTART, Restarting)
        if held is not None and held.host == host:
            break  # this host's agent was killed meanwhile
        if time.monotonic() > deadline:
            raise Unavailable("another voter's etcd restarts", "if it does not come back: linkspan cluster members")
        await asyncio.sleep(AGAIN)
    others = {one: place for one, place in (await places(vault.gateway)).items() if one != host}
    silent = [one for one, place in others.items() if await standing(vault.gateway, place) is None]
    if not dispensable(len(others) - len(silent), len(others)):
        await _end(vault, host)
        joined, _ = await vault.get(HOSTS + silent[0], JoinedHost)
        raise Unavailable(
            f"etcd is not restarted here, because the voter {joined.name if joined else silent[0]} does not answer",
            f"bring it back, or take it out: linkspan cluster demote {silent[0]}",
        )
    await service.restart()
    deadline = time.monotonic() + BACK_SECONDS
    while await standing(vault.gateway, service.place) is None:
        if time.monotonic() > deadline:
            return  # it is restarted, and the turn ends by itself; the next voter sees that this one is missing
        await asyncio.sleep(AGAIN)
    await _end(vault, host)


async def _end(vault: Vault, host: str) -> None:
    """Give the turn back."""
    held, revision = await vault.get(RESTART, Restarting)
    if held is not None and held.host == host:
        await vault.put({RESTART: (None, revision)})
