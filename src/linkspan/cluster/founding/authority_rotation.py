"""Authority rotation: the authorities of linkspan's own etcd are replaced while everything goes on.

A voter's part in it, and what an operator begins and sees. ``authority_plan`` has the steps.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from linkspan.cluster.founding import member_list, root_password
from linkspan.cluster.founding.authority_plan import (
    CLIENTS,
    DROP,
    KINDS,
    ROTATION,
    SIGN,
    STEPS,
    TRUST,
    RotationRecord,
    VotersSeen,
    may_act,
    waited_for,
)
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.exclusion import end_token, named
from linkspan.cluster.founding.join_token import TokenRecord
from linkspan.cluster.founding.restart_turn import places, restart_in_turn, standing
from linkspan.cluster.founding.signer import HOSTS, TOKENS, JoinedHost
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.core.errors import Conflict, LinkspanError
from linkspan.store.etcd_errors import Refused
from linkspan.store.vault import TRIES, Vault, contended

log = logging.getLogger("linkspan.cluster.founding.authority_rotation")

HINT = "upkeep/authorities"
"""The key of the record that makes hosts ask a signer. Any host may write it, and nothing else follows from it."""
BUSY, IDLE = 1.0, 5.0
"""Seconds between two looks while authorities change, and while they do not."""


class RotationProgress(msgspec.Struct, frozen=True):
    """A rotation as operators see it: hosts and voters by their names; ``step`` '': none is under way."""

    id: str = ""
    step: str = ""
    kinds: tuple[str, ...] = ()
    voters: tuple[str, ...] = ()
    """Voters that have not carried out the step, and hosts that become one now."""
    hosts: tuple[str, ...] = ()
    """Hosts that are waited for."""
    without: tuple[str, ...] = ()


class AuthoritiesHint(msgspec.Struct, frozen=True):
    """The record that tells hosts to ask: another one with each step."""

    step: str


class AuthorityRotation:
    """A voter's part in rotations."""

    def __init__(
        self,
        files: TrustFiles,
        vault: Vault,
        service: EtcdService,
        voter: Voter,
        host: str,
        life: float,
        renewed: Callable[[], None],
    ) -> None:
        """``life`` is for how many seconds this voter signs; ``renewed`` is called when it has other certificates."""
        self._files = files
        self._vault = vault
        self._service = service
        self._voter = voter
        self._host = host
        self._life = life
        self._renewed = renewed
        self._said = ""

    async def run(self) -> None:
        """Do this voter's part, for as long as it is one."""
        while True:
            busy = False
            try:
                busy = await self.look()
                self._said = ""
            except LinkspanError as error:
                if self._said != error.message:
                    log.info("authorities: %s", error.told)
                self._said = error.message
            await asyncio.sleep(BUSY if busy else IDLE)

    async def look(self) -> bool:
        """Do what is this voter's part now; return whether a rotation is under way. Raises LinkspanError."""
        try:
            rotation, revision = await self._vault.get(ROTATION, RotationRecord)
        except Refused as error:
            if not error.wrong_password or not await asyncio.to_thread(root_password.exchanged, self._files):
                raise
            return True  # another voter has changed root's password in etcd
        if rotation is None:
            await asyncio.to_thread(root_password.drop_other, self._files)  # etcd has taken the one that is in use
            return False
        if await _learners(self._vault):
            return True  # it has what its voter had when it was chosen, and carries out the step once it is a voter
        seen = await self._seen()
        if self._host not in rotation.done:
            if may_act(rotation, self._host, seen):
                await self._act(rotation)
        elif seen.voters <= {*rotation.done}:
            await self._go_on(rotation, revision, seen.voters)
        return True

    async def _seen(self) -> VotersSeen:
        found = {}
        for host, place in (await places(self._vault.gateway)).items():
            found[host] = await standing(self._vault.gateway, place)
        own = found.get(self._host)
        leads = own is not None and own.leads
        return VotersSeen(frozenset(found), leads, all(one is not None for one in found.values()))

    async def _act(self, rotation: RotationRecord) -> None:
        """Carry out the step on this voter."""
        from linkspan.cluster.founding import authority_keys  # cryptography: 10 MB

        args = (self._files, self._service, self._voter, self._host, rotation, self._life)
        if await asyncio.to_thread(authority_keys.carry_out, *args):
            await restart_in_turn(self._vault, self._service, self._host)
        self._renewed()
        for _ in range(TRIES):
            now, revision = await self._vault.get(ROTATION, RotationRecord)
            if now is None or (now.id, now.step) != (rotation.id, rotation.step):
                return
            done = msgspec.structs.replace(now, done=(*{*now.done, self._host},))
            if await self._vault.put({ROTATION: (done, revision)}):
                log.info("this voter has carried out step %s of the authorities' rotation", rotation.step)
                return
        raise contended("the authorities' rotation")

    async def _go_on(self, rotation: RotationRecord, revision: int, voters: frozenset[str]) -> None:
        """Tell the hosts once all voters have carried out the step, and begin the next one when they are ready."""
        if not rotation.told:
            await self._vault.tell(HINT, AuthoritiesHint(f"{rotation.id}/{rotation.step}"))
            rotation = msgspec.structs.replace(rotation, told=True)
            if rotation.step != DROP:
                await self._vault.put({ROTATION: (rotation, revision)})
                return
        if rotation.step == DROP:
            await root_password.change(self._files, self._vault, rotation.root)
            await self._vault.put({ROTATION: (None, revision)})
            log.info("the authorities' rotation has ended")
            return
        if not waited_for(rotation, await self._vault.all(HOSTS, JoinedHost), voters):
            following = STEPS[STEPS.index(rotation.step) + 1]
            fresh = msgspec.structs.replace(rotation, step=following, done=(), told=False)
            if following == SIGN and CLIENTS in rotation.authorities:
                await revoke_tokens(self._vault)  # they name the authority that ends
            await self._vault.put({ROTATION: (fresh, revision)})


async def _learners(vault: Vault) -> list[str]:
    """Return the hosts that become voters now, by their ids or their addresses. Raises Unavailable."""
    found = await member_list.listed(vault.gateway, agreed=True)
    return [member_list.host_of(one) or member_list.address(one) for one in found if one.learner]


async def revoke_tokens(vault: Vault) -> None:
    """Let nobody in any more with a token that exists now. Raises Unavailable."""
    for id_ in await vault.all(TOKENS, TokenRecord):
        await end_token(vault, id_)


async def for_joiners(files: TrustFiles, vault: Vault) -> bytes:
    """Return the authority (PEM) that a new token names: during a rotation the one that stays. Raises Unavailable.

    This voter may not have carried out the step yet. In the first step tokens name the old one, and end with it.
    """
    rotation, _ = await vault.get(ROTATION, RotationRecord)
    if rotation is not None and rotation.step != TRUST and CLIENTS in rotation.authorities:
        return rotation.authorities[CLIENTS].encode()
    return files.authority.read_bytes()


async def begin(
    files: TrustFiles, vault: Vault, kinds: Sequence[str], without: Sequence[str], names: Mapping[str, str]
) -> RotationProgress:
    """Begin a rotation, or go on with the one that is under way; ``without``: names or ids of hosts to leave out.

    ``names`` are the hosts' names by id, as their records have them. Raises Conflict if one of other kinds is under
    way, NotFound if a host is not known, and Unavailable.
    """
    hosts = await vault.all(HOSTS, JoinedHost)
    for _ in range(TRIES):
        rotation, revision = await vault.get(ROTATION, RotationRecord)
        if rotation is None:
            from linkspan.cluster.founding import authority_keys  # cryptography: 10 MB

            rotation = await asyncio.to_thread(authority_keys.make, files, uuid.uuid4().hex, tuple(kinds) or KINDS)
        elif kinds and {*kinds} != {*rotation.authorities}:
            raise Conflict(
                f"the authorities of {' and '.join(rotation.authorities)} are being rotated",
                "wait until that has ended: linkspan cluster rotate-ca shows it",
            )
        left_out = {*rotation.without, *(named(hosts, word, names) for word in without)}
        fresh = msgspec.structs.replace(rotation, without=tuple(sorted(left_out)))
        if await vault.put({ROTATION: (fresh, revision)}):
            return await _progress(vault, fresh)
    raise contended("the authorities' rotation")


async def progress(vault: Vault) -> RotationProgress:
    """Return how far the rotation is that is under way. Raises Unavailable."""
    rotation, _ = await vault.get(ROTATION, RotationRecord)
    return RotationProgress() if rotation is None else await _progress(vault, rotation)


async def _progress(vault: Vault, rotation: RotationRecord) -> RotationProgress:
    hosts = await vault.all(HOSTS, JoinedHost)
    voters, learners = await places(vault.gateway), await _learners(vault)

    def names(ids: Collection[str]) -> tuple[str, ...]:
        return tuple(sorted(hosts[id_].name if id_ in hosts else id_ for id_ in ids))

    left = [*(one for one in voters if one not in rotation.done), *learners]
    waiting = [] if left else waited_for(rotation, hosts, voters)
    kinds = tuple(rotation.authorities)
    return RotationProgress(rotation.id, rotation.step, kinds, names(left), names(waiting), names(rotation.without))
