"""Reissue: a host shows a signer its certificate, and gets the next one.

The TLS handshake has proved that the host has the key, and the signer takes nothing from the request: the new
certificate is for the same host and the same key. A host keeps its key for good. So to change a certificate is to
change one file, in one step, and an id never belongs to two keys. A new key would help nobody: whoever has stolen a key
may renew with it until the host is forgotten.

An answer may be lost, and a host may ask as often as it likes. So the vault has the last certificate of each host: the
host gets the same one again until half of its life is over, or until there is another authority.

A vault that was restored from a snapshot lacks what was signed after that. So it takes up the serial number of each
certificate that is shown: if the host is forgotten, it is revoked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import msgspec
from aiohttp import web

from linkspan.cluster.founding.caller import in_force, presented
from linkspan.cluster.founding.signer import HOSTS, JoinedHost, certified, with_serials
from linkspan.cluster.founding.signer_server import Handler, sent
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.kernel.io.private_files import alone
from linkspan.store.vault import TRIES, Vault, contended

if TYPE_CHECKING:
    from linkspan.cluster.founding.certificates import Shown

RENEW = "/v1/renew"
"""The path of the request at the signer."""
MOST_AUTHORITIES = 8
"""More than a host ever trusts at once: two, while they change."""
Fingerprint = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class RenewalWish(msgspec.Struct, frozen=True):
    """A host's wish for its next certificate: the SHA-256 of the authorities that it trusts.

    With this and the certificate that it shows a rotation knows when it need not wait for the host any longer. What it
    gets does not depend on it.
    """

    trusts: Annotated[tuple[Fingerprint, ...], msgspec.Meta(max_length=MOST_AUTHORITIES)] = ()


class Renewed(msgspec.Struct, frozen=True):
    """The answer to a host that showed its certificate: the one to use, and the authorities to trust (both PEM)."""

    certificate: str
    authorities: str


class Reissue:
    """Gives hosts their next certificates."""

    def __init__(self, files: TrustFiles, vault: Vault, life: float) -> None:
        """Take for how many seconds new certificates are valid: ``life``."""
        self._files = files
        self._vault = vault
        self._life = life

    def handlers(self) -> Mapping[str, Handler]:
        """Return the requests by their paths."""
        return {RENEW: self._asked}

    async def _asked(self, request: web.Request) -> msgspec.Struct:
        return await self.renew(presented(request), await sent(request, RenewalWish))

    async def renew(self, shown: Shown, wish: RenewalWish) -> Renewed:
        """Return what a host shall use that showed its certificate.

        Raises Denied if the host was forgotten or its certificate is not in force, Conflict, and Unavailable.
        """
        from linkspan.cluster.founding.certificates import signed_by  # cryptography: 10 MB

        authorities = alone(str(self._files.authority))
        for _ in range(TRIES):
            known, revision = await in_force(self._vault, shown)
            fresh = await asyncio.to_thread(self._next, shown, known, authorities)
            shows = signed_by(authorities, shown.pem.encode())
            fresh = msgspec.structs.replace(fresh, trusts=wish.trusts, shows=shows)
            if fresh == known or await self._vault.put({HOSTS + shown.host: (fresh, revision)}):
                return Renewed(fresh.certificate or shown.pem, authorities.decode())
        raise contended(f"host {shown.host} renews its certificate")

    def _next(self, shown: Shown, known: JoinedHost, authorities: bytes) -> JoinedHost:
        """Return what is kept of a host after it has shown a certificate: with another one if it needs one."""
        from linkspan.cluster.founding.certificates import Authority  # as above

        authority = Authority(authorities, alone(str(self._files.authority_key)), self._life)
        restored = shown.serial not in known.serials  # then the vault's is older
        last = shown.pem if restored or not known.certificate else known.certificate
        return certified(with_serials(known, shown.serial), authority, shown, shown.host, last)
