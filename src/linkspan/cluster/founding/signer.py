"""Signer of a voter: it decides which hosts come into the cluster, and signs their certificates.

Anybody may ask it for two things (``signer_server``). One is the client authority: a joiner compares its hash with the
token's. The other one is a join, with the token's secret. Whoever asks is known by nothing else, so each field is
checked here.
"""

from __future__ import annotations

import asyncio
import datetime
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from linkspan.cluster.founding import join_token
from linkspan.cluster.founding.join_token import TokenRecord
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.cluster.founding.validity import FIRST, parsed
from linkspan.core.errors import Conflict, Denied, Invalid
from linkspan.core.model import checked_name
from linkspan.store.vault import TRIES, Vault, contended

if TYPE_CHECKING:
    from linkspan.cluster.founding.certificates import Authority, Requested, Shown

MOST_SERIALS = 1000
"""Serial numbers that are kept of a host, the newest: all that are valid, for a host gets one for half of a life."""
LONGEST_NAME = 253
"""A host's name is as long as DNS allows (RFC 1035)."""
PASSWORD = re.compile(r"[A-Za-z0-9_-]{32,128}")
"""A password as a host makes it: 192 random bits or more, which nobody can guess."""
TOKENS, HOSTS, REVOKED = "tokens/", "hosts/", "revoked/"
"""Prefixes of the vault's keys; an id or a serial number follows."""


class JoinWish(msgspec.Struct, frozen=True):
    """A joiner's request: the token, its host's id and name, a signing request (PEM), and its password for etcd.

    A repeated join sends the same password: what the first one left, and what runs, stays good.
    """

    token: str
    secret: str
    host: str
    name: str
    request: str
    password: str


class Welcome(msgspec.Struct, frozen=True):
    """The answer to a join: certificate (PEM), etcd's endpoints (HOST:PORT) and the cluster's id."""

    certificate: str
    endpoints: tuple[str, ...]
    cluster: str


class Introduction(msgspec.Struct, frozen=True):
    """The public part of a cluster: its client authority (PEM), and its id."""

    authority: str
    cluster: str


class Problem(msgspec.Struct, frozen=True):
    """A refusal: the error's code, message and hint."""

    code: str
    message: str
    hint: str = ""


class JoinedHost(msgspec.Struct, frozen=True):
    """A host as the voters keep it: its name, its key's SHA-256, the serial numbers of its certificates.

    ``token`` is the id of the token that let it in, and ``at`` when (seconds since the epoch). A ``forgotten`` host may
    join again only with another key, and ``recorded`` says that it had anything among the records then. A ``member``
    may become a voter: its token or an operator said so. ``certificate`` (PEM) is the last one that a signer gave it
    ('': none, for it began the cluster). ``trusts`` has the SHA-256 of the authorities that it trusts, and ``shows``
    that of the authority of the certificate that it has, as it said last.
    """

    name: str
    key: str
    serials: tuple[str, ...]
    token: str
    at: float
    forgotten: bool = False
    recorded: bool = False
    member: bool = False
    certificate: str = ""
    trusts: tuple[str, ...] = ()
    shows: str = ""


class Revoked(msgspec.Struct, frozen=True):
    """A certificate that is revoked, by the id of its host and the time; ``cut``: its open connections end, too."""

    host: str
    at: float
    cut: bool = True


class Signer:
    """Lets hosts in: checks tokens, signs certificates, and makes users."""

    def __init__(
        self,
        files: TrustFiles,
        vault: Vault,
        endpoints: Callable[[], tuple[str, ...]],
        cluster: str,
        life: float,
    ) -> None:
        """``endpoints`` returns etcd's, for the hosts; ``cluster`` is its id; it signs for ``life`` seconds."""
        self._files = files
        self._vault = vault
        self._endpoints = endpoints
        self._cluster = cluster
        self._life = life
        self._turns = asyncio.Lock()
        """One host joins after the other: each change of users makes etcd refuse what is asked with older logins."""

    def introduction(self) -> Introduction:
        """Return what anybody may know."""
        return Introduction(self._files.authority.read_text(encoding="ascii"), self._cluster)

    async def admit(self, wish: JoinWish) -> Welcome:
        """Let a host in. Raises Denied, Invalid or Conflict with the reason, and Unavailable."""
        host = checked_name(wish.host, "host id:")
        if len(wish.name) > LONGEST_NAME or not wish.name.isprintable():
            raise Invalid("the host's name is too long, or has characters that cannot be printed")
        if not PASSWORD.fullmatch(wish.password):
            raise Invalid("the host's password is no random word of 32 to 128 letters")
        async with self._turns:
            record, _ = await self._vault.get(TOKENS + _plain(wish.token), TokenRecord)
            join_token.admitted(record, _plain(wish.token), wish.secret, host, time.time())  # before what costs much
            certificate = await self._note(wish, host, await asyncio.to_thread(_requested, wish))
            await self._vault.admit(host, wish.password)
            await self._tidy()
        return Welcome(certificate, self._endpoints(), self._cluster)

    async def _tidy(self) -> None:
        """Delete tokens that expired long ago."""
        ended = time.time() - join_token.KEPT_SECONDS
        for id_, token in (await self._vault.all(TOKENS, TokenRecord)).items():
            if token.expires < ended:
                _, revision = await self._vault.get(TOKENS + id_, TokenRecord)
                await self._vault.put({TOKENS + id_: (None, revision)})

    async def _note(self, wish: JoinWish, host: str, requested: Requested) -> str:
        """Write down that a host joined with a token, and return its certificate.

        A host that repeats its join gets the same one: else it could fill the vault. It does not become a member by it,
        for somebody may have demoted it meanwhile. Raises Denied or Conflict if the token or the host's id may not be
        used.
        """
        for _ in range(TRIES):
            record, at = await self._vault.get(TOKENS + _plain(wish.token), TokenRecord)
            known, known_at = await self._vault.get(HOSTS + host, JoinedHost)
            inside = None if known is None or known.forgotten else known
            used = join_token.admitted(
                record, _plain(wish.token), wish.secret, host, time.time(), inside=inside is not None
            )
            if known is not None:
                refuse_other(known, host, requested.key_hash)
            refuse_mistakable(await self._vault.all(HOSTS, JoinedHost), host, wish.name)
            first = inside is None or used != record
            joined = JoinedHost(
                name=wish.name,
                key=requested.key_hash,
                serials=known.serials if known is not None else (),
                token=_plain(wish.token),
                at=time.time(),
                member=(first and used.member) or (inside is not None and inside.member),
            )
            last = "" if inside is None else inside.certificate
            joined = await asyncio.to_thread(self._certified, joined, requested, host, last)
            if await self._vault.put({TOKENS + _plain(wish.token): (used, at), HOSTS + host: (joined, known_at)}):
                return joined.certificate
        raise contended(f"host {host} joins")

    def _certified(self, joined: JoinedHost, requested: Requested, host: str, last: str) -> JoinedHost:
        from linkspan.cluster.founding.certificates import Authority  # as below

        authority = Authority(self._files.authority.read_bytes(), self._files.authority_key.read_bytes(), self._life)
        return certified(joined, authority, requested, host, last)


def _requested(wish: JoinWish) -> Requested:
    """Return a joiner's signing request as understood. Raises Invalid."""
    from linkspan.cluster.founding.certificates import Requested  # cryptography: 10 MB

    return Requested(wish.request.encode())


def certified(joined: JoinedHost, authority: Authority, owner: Requested | Shown, host: str, last: str) -> JoinedHost:
    """Return what is kept of a host with a certificate for its owner's key: ``last`` (PEM), or another one.

    It gets another one once half of the last one's life is over, or if the last one is not of this authority, or not
    valid yet: its signer's clock was wrong. Slow, so it belongs into a thread.
    """
    now = datetime.datetime.now(datetime.UTC)
    if last and authority.signed(last.encode()):
        validity = parsed(last.encode())
        if validity.begin <= now.timestamp() < validity.at(FIRST):
            return msgspec.structs.replace(joined, certificate=last)
    certificate, serial = authority.host(owner, host, now)
    return msgspec.structs.replace(with_serials(joined, f"{serial:x}"), certificate=certificate.decode())


def with_serials(joined: JoinedHost, *serials: str) -> JoinedHost:
    """Return what is kept of a host with these serial numbers (hex) of its certificates as well."""
    fresh = [one for one in serials if one not in joined.serials]
    return msgspec.structs.replace(joined, serials=(*joined.serials, *fresh)[-MOST_SERIALS:]) if fresh else joined


def refuse_other(known: JoinedHost, host: str, key: str) -> None:
    """Raise Conflict if a host's id belongs to another key, or was forgotten; set up again, it has another key."""
    if known.forgotten and known.key == key:
        raise Conflict(
            f"host {known.name} ({host}) was forgotten, so other hosts may have its addresses",
            "remove linkspan's state on that host (linkspan uninstall), and then join again",
        )
    if not known.forgotten and known.key != key:
        raise Conflict(
            f"a host with the id {host} is in the cluster already, with another key: {known.name}",
            f"if that host is gone or was set up again, on a voter: linkspan cluster forget {host}",
        )


def refuse_mistakable(hosts: Mapping[str, JoinedHost], host: str, name: str) -> None:
    """Raise Conflict if a host's id is another one's name, or its name another one's id.

    An operator who types the word, to promote a host or to forget it, would mean one and get the other.
    """
    for id_, other in hosts.items():
        if id_ == host or other.forgotten or (other.name != host and id_ != name):
            continue
        same = f"id {host} is the name" if other.name == host else f"name {name} is the id"
        raise Conflict(
            f"this host's {same} of another host in the cluster, {other.name} ({id_})",
            f"give this host another one; if the other host is gone, on a voter: linkspan cluster forget {id_}",
        )


def sign(files: TrustFiles, requested: Requested, host: str, life: float) -> tuple[bytes, int]:
    """Return a certificate for a host, and its serial number; slow, so it belongs into a thread."""
    from linkspan.cluster.founding.certificates import Authority  # as above

    authority = Authority(files.authority.read_bytes(), files.authority_key.read_bytes(), life)
    return authority.host(requested, host, datetime.datetime.now(datetime.UTC))


def _plain(token: str) -> str:
    """Return a token's id, if it is one. Raises Denied."""
    if not token.isalnum() or not token.isascii() or len(token) > 2 * LONGEST_NAME:
        raise Denied("the token's id is no token's")
    return token
