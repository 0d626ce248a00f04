"""Promotion: a host that the cluster chose becomes a voter, and one that was taken out becomes a client again.

Each step leaves a file that the next try finds, so both can break off anywhere. What makes a host a voter is
``voter.json``, which is written last and removed last.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

import msgspec

from linkspan.cluster.founding import data_folder, handover, member_list
from linkspan.cluster.founding.etcd_service import EtcdService, program, require_trusted
from linkspan.cluster.founding.handover import Ready, Secrets
from linkspan.cluster.founding.trust_files import RECORDS_PREFIX, TrustFiles, Voter
from linkspan.core.errors import LinkspanError
from linkspan.store.etcd_wire import Member
from linkspan.store.vault import Vault

Install = Callable[[EtcdService], None]


def joins(members: Iterable[Member], own: Member, name: str) -> str:
    """Return the members that a new one joins, itself among them, as etcd's --initial-cluster has them."""
    named = [(name if one.id == own.id else one.name, one.peers) for one in members]
    return ",".join(f"{called}={url}" for called, urls in named if called for url in urls)


def has_joined(service: EtcdService, own: Member) -> bool:
    """Return whether this host's data are of this membership: then it only goes on."""
    with contextlib.suppress(LinkspanError):
        known = data_folder.note(service.data)
        return known is not None and known.member == own.id
    return False


async def become(
    files: TrustFiles,
    service: EtcdService,
    voter: Voter,
    own: Member,
    places: tuple[str, ...],
    install: Install,
    life: float,
) -> None:
    """Make what a voter has, and write down that this host is one; whoever keeps its etcd starts it then.

    ``own`` is this host's member, a learner; ``places`` are HOST:PORT of etcd on the voters. Its certificates are valid
    for ``life`` seconds. Raises LinkspanError.
    """
    from linkspan.cluster.founding import (
        foundation,  # cryptography: 10 MB that only signing needs
    )

    ready = await asyncio.to_thread(_ready)
    secrets = await handover.ask(files, member_list.signers(places), "/v1/voter", ready, Secrets)
    await asyncio.to_thread(_keep, files, secrets)
    await service.end()
    await asyncio.to_thread(install, service)
    await asyncio.to_thread(service.clear)
    await asyncio.to_thread(foundation.make_server, files, service, voter, life)
    vault = Vault(files.root_url(places), RECORDS_PREFIX)
    try:
        await foundation.renew_revoked(files, vault, service)
    finally:
        await vault.close()
    await asyncio.to_thread(service.prepare, own.id)
    files.keep_voter(voter)


def _ready() -> Ready:
    """Return whether this host can run etcd."""
    try:
        require_trusted()
        return Ready(data_folder.minor_of(program()))
    except LinkspanError as error:
        return Ready("", error.message)


def _keep(files: TrustFiles, secrets: Secrets) -> None:
    files.put(files.authority_key, secrets.authority_key.encode())
    files.put(files.peer_authority, secrets.peer_authority.encode())
    files.put(files.peer_authority_key, secrets.peer_authority_key.encode())
    files.put(files.root_password, secrets.root_password.encode() + b"\n")


async def move(files: TrustFiles, service: EtcdService, voter: Voter, install: Install, life: float) -> None:
    """Let a voter's etcd listen at another address, with certificates for it; whoever keeps it starts it then.

    The certificates are valid for ``life`` seconds. What breaks off can be repeated: until the end ``voter.json`` says
    that the voter is moving. Raises LinkspanError.
    """
    from linkspan.cluster.founding import foundation  # as above

    await service.end()
    files.keep_voter(msgspec.structs.replace(voter, moving=True))
    await asyncio.to_thread(service.clear, ("server.pem", "peer.pem"))
    await asyncio.to_thread(foundation.make_server, files, service, voter, life)
    await asyncio.to_thread(install, service)
    files.keep_voter(voter)


async def retire(files: TrustFiles, service: EtcdService) -> None:
    """Become a client: end etcd, put its data aside, and drop what only a voter has. Raises LinkspanError."""
    await service.end()
    await asyncio.to_thread(service.clear)
    await asyncio.to_thread(data_folder.put_aside, service.data)
    files.forget_voter()
