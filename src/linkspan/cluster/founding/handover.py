"""Handover: what a voter gives to, or takes from, a host that shows its certificate at the signer's port.

A host that the cluster chose as its next voter gets the authorities' keys and root's password of etcd. They are never
among the records, and cross the network only here, by mutual TLS. A host that leaves has its user deleted.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec
from aiohttp import web

from linkspan.cluster.founding import data_folder, member_list
from linkspan.cluster.founding.caller import in_force, presented
from linkspan.cluster.founding.etcd_service import program
from linkspan.cluster.founding.exclusion import release
from linkspan.cluster.founding.signer_client import JOIN_AGAIN, asked
from linkspan.cluster.founding.signer_server import Handler, sent
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import Conflict, Denied, Unavailable
from linkspan.kernel.io.private_files import alone
from linkspan.store.vault import Vault

log = logging.getLogger("linkspan.cluster.founding.handover")

TURN = "voting/turn"
"""The vault's key of the last step of voting."""
LONGEST_WHY = 300
"""Most letters of a host's own words that are kept."""
T = TypeVar("T")


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """The last step of voting: which host was chosen, and its address; ``by``: the host that decided.

    Whoever decides changes it first, on the condition that nobody did since it looked: so two never act on one view.
    ``refused`` is why the chosen host cannot become a voter. ``failed``: when hosts failed to become one (seconds since
    the epoch), by their ids.
    """

    by: str
    at: float
    host: str = ""
    address: str = ""
    refused: str = ""
    failed: dict[str, float] = {}


class Ready(msgspec.Struct, frozen=True):
    """The chosen host's answer: the minor version of its etcd, '' if it cannot run one, and why not."""

    minor: str
    problem: str = ""


class Secrets(msgspec.Struct, frozen=True):
    """The secrets of a voter: the authorities' keys (PEM), the voters' authority (PEM), root's password in etcd."""

    authority_key: str
    peer_authority: str
    peer_authority_key: str
    root_password: str


class Nothing(msgspec.Struct, frozen=True):
    """The body of a request, or of an answer, that says nothing more."""


class Handover:
    """Answers hosts that show their certificates."""

    def __init__(self, files: TrustFiles, vault: Vault) -> None:
        self._files = files
        self._vault = vault

    def handlers(self) -> Mapping[str, Handler]:
        """Return the requests by their paths."""
        return {"/v1/voter": self._voter, "/v1/leave": self._leave}

    async def _voter(self, request: web.Request) -> msgspec.Struct:
        shown = presented(request)
        ready = await sent(request, Ready)
        host, (known, _) = shown.host, await in_force(self._vault, shown)
        turn, revision = await self._vault.get(TURN, Turn)
        members = await member_list.listed(self._vault.gateway, agreed=True)
        if turn is None or turn.host != host or turn.refused or not known.member:
            raise Denied(f"the cluster has not chosen host {known.name} as a voter")
        if not any(one.learner and member_list.address(one) == turn.address for one in members):
            raise Denied(f"host {known.name} is no learner of the cluster any more")
        if (why := ready.problem or self._unfit(ready.minor)) != "":
            why = "".join(one for one in why if one.isprintable())[:LONGEST_WHY]
            await self._vault.put({TURN: (msgspec.structs.replace(turn, refused=why), revision)})
            raise Conflict(f"host {known.name} cannot become a voter: {why}")
        log.info("host %s (%s) gets what a voter needs", known.name, host)
        return await asyncio.to_thread(self._secrets)

    def _unfit(self, minor: str) -> str:
        own = data_folder.minor_of(program())
        return "" if minor == own else f"it has etcd {minor}, and the cluster's is {own}"

    def _secrets(self) -> Secrets:
        files = self._files
        return Secrets(
            authority_key=alone(str(files.authority_key)).decode(),
            peer_authority=alone(str(files.peer_authority)).decode(),
            peer_authority_key=alone(str(files.peer_authority_key)).decode(),
            root_password=alone(str(files.root_password)).decode(),
        )

    async def _leave(self, request: web.Request) -> msgspec.Struct:
        shown = presented(request)
        host, (known, _) = shown.host, await in_force(self._vault, shown)
        if any(member_list.host_of(one) == host for one in await member_list.listed(self._vault.gateway, agreed=True)):
            raise Conflict(f"host {known.name} is a voter", "demote it first")
        await release(self._vault, host)
        log.info("host %s (%s) has left the cluster", known.name, host)
        return Nothing()


def refused(turn: Turn, host: str) -> Turn:
    """Return a turn in which a host failed to become a voter just now."""
    return msgspec.structs.replace(turn, host="", address="", refused="", failed={**turn.failed, host: time.time()})


async def ask(files: TrustFiles, signers: Iterable[str], path: str, body: msgspec.Struct, kind: type[T]) -> T:
    """Return a signer's answer to a host that shows its certificate. Raises the signer's error, or Unavailable."""
    context = await asyncio.to_thread(_context, files)
    failed: list[str] = []
    for signer in signers:
        try:
            return await asked(signer, path, context, kind, body)
        except Unavailable as error:
            failed.append(error.message)
    raise Unavailable("; ".join(failed) or "no voter is known", "do the voters' agents run?")


def _context(files: TrustFiles) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(files.authority))
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise Unavailable(f"the certificate in {files.folder} cannot be used: {why}", JOIN_AGAIN) from error
    return context
