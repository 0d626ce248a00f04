"""Join token: what lets a host into the cluster, as one word that an operator copies."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import zlib

import msgspec

from linkspan.core.addresses import place
from linkspan.core.errors import Denied, Invalid

MARK = "LSPAN1-"
"""How tokens begin; another format of them gets another number."""
_ID, _SECRET, _HASH, _SUM = 5, 16, 32, 4
"""Bytes of a token's parts: 128 random bits are the secret, SHA-256 is the authority's hash, CRC-32 finds errors."""
MOST_VOTERS = 16
NEW_SECONDS = 24 * 3600.0
"""Seconds for which a token is good if nothing else is said."""
KEPT_SECONDS = 30 * 24 * 3600.0
"""Seconds for which an expired token is still listed."""
LONGEST_SECONDS = 366 * 24 * 3600.0


class JoinToken(msgspec.Struct, frozen=True):
    """A token: its id, the secret (hex), the client authority's SHA-256 (hex), and ADDRESS:PORT of each signer."""

    id: str
    secret: str
    authority: str
    signers: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return the word that people copy."""
        parts = bytes.fromhex(self.id + self.secret + self.authority) + ",".join(self.signers).encode()
        whole = parts + zlib.crc32(parts).to_bytes(_SUM, "big")
        return MARK + base64.urlsafe_b64encode(whole).decode().rstrip("=")


def new(authority: str, signers: tuple[str, ...]) -> JoinToken:
    """Return a new token with a random id and secret."""
    return JoinToken(secrets.token_hex(_ID), secrets.token_hex(_SECRET), authority, signers)


def parsed(text: str) -> JoinToken:
    """Return the parts of a token. Raises Invalid if it was not copied whole, or is no token."""
    again = "copy it again from the output of `linkspan cluster init` or `linkspan cluster token create`"
    word = text.strip()
    if not word.startswith(MARK):
        raise Invalid(f"this is no join token: a token begins with {MARK}", again)
    body = word.removeprefix(MARK)
    broken = Invalid("the join token is not complete, or was changed while it was copied", again)
    try:
        whole = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise broken from error
    parts, checksum = whole[:-_SUM], whole[-_SUM:]
    if len(parts) <= _ID + _SECRET + _HASH or zlib.crc32(parts).to_bytes(_SUM, "big") != checksum:
        raise broken
    ends = (_ID, _ID + _SECRET, _ID + _SECRET + _HASH)
    signers = tuple(parts[ends[2] :].decode(errors="replace").split(","))
    if len(signers) > MOST_VOTERS:
        raise Invalid(f"the join token names {len(signers)} voters, and {MOST_VOTERS} are the most", again)
    for signer in signers:
        try:
            _, port = place(signer)
        except Invalid:
            port = 0
        if not port:
            raise Invalid(f"the join token names a voter at {signer!r}, which is no address with a port", again)
    return JoinToken(parts[: ends[0]].hex(), parts[ends[0] : ends[1]].hex(), parts[ends[1] : ends[2]].hex(), signers)


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A token as the voters keep it: never the secret, only its hash.

    ``created`` and ``expires`` are seconds since the epoch. ``uses`` is how many hosts may join with it, 0: any number;
    ``used`` are the ids of those that did. A host of ``member`` tokens may become a voter.
    """

    hash: str
    created: float
    expires: float
    uses: int = 0
    used: tuple[str, ...] = ()
    member: bool = False
    revoked: bool = False

    def state(self, now: float) -> str:
        """Return ``valid``, or why it lets nobody in: ``revoked``, ``expired``, ``used up``."""
        if self.revoked:
            return "revoked"
        if now >= self.expires:
            return "expired"
        return "used up" if self.uses and len(self.used) >= self.uses else "valid"


def hashed(secret: str) -> str:
    """Return the hash of a secret. It has 128 random bits, so nobody can guess it from a fast hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def admitted(
    record: TokenRecord | None, id_: str, secret: str, host: str, now: float, *, inside: bool = True
) -> TokenRecord:
    """Return a token's record with ``host`` among those that used it. Raises Denied, with the reason.

    A host that joined with the token may repeat that, also if all of its uses are spent: the first try may have broken
    off. Once it has left (``inside`` is false), its use counts for nobody: others may know its id. Who does not know
    the secret is not told whether the token exists.
    """
    fresh = "on a voter: linkspan cluster token create"
    if record is None or not hmac.compare_digest(record.hash, hashed(secret)):
        raise Denied(f"token {id_} is not known, or its secret is wrong", fresh)
    state = record.state(now)
    if state == "used up" and host in record.used and inside:
        return record
    if state != "valid":
        raise Denied(f"token {id_} is {state}", fresh)
    return record if host in record.used else msgspec.structs.replace(record, used=(*record.used, host))
