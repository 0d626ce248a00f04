"""Entry: a host joins a cluster by a token, and keeps what the signer gives it."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from typing import TypeVar

import aiohttp
import msgspec

from linkspan.cluster.founding import certificates
from linkspan.cluster.founding.join_token import JoinToken
from linkspan.cluster.founding.signer import Introduction, JoinWish, Problem, Welcome
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core import errors
from linkspan.core.errors import Conflict, Denied, Invalid, LinkspanError, Unavailable
from linkspan.core.store_url import check_url

SECONDS = 20.0
"""Seconds for one answer of a signer: its etcd may be restarting."""
LARGEST = 64 << 10
"""Largest answer in bytes."""
T = TypeVar("T")

_KINDS: Mapping[str, type[LinkspanError]] = {
    kind.code: kind for kind in (errors.Denied, errors.Invalid, errors.Conflict, errors.Unavailable)
}


async def enter(files: TrustFiles, token: JoinToken, host: str, name: str, known: str) -> tuple[str, str]:
    """Join by a token; return the store's URL and the cluster's id.

    ``known`` is the id of the cluster in which this host has networks, '' if it has none: it joins no other. The host's
    key and password are made once, so a join that broke off can be repeated, and a repeated one leaves the host inside.
    Raises Denied, Invalid, Conflict or Unavailable.
    """
    failed: list[Unavailable] = []
    for signer in token.signers:
        try:
            return await _enter_at(signer, files, token, host, name, known)
        except Unavailable as error:
            failed.append(error)
    raise Unavailable("; ".join(error.message for error in failed), failed[0].hint)


async def _enter_at(
    signer: str, files: TrustFiles, token: JoinToken, host: str, name: str, known: str
) -> tuple[str, str]:
    authority = await _authority(signer, token)
    context = ssl.create_default_context(cadata=authority)
    introduced = await _asked(signer, "/v1/authority", context, Introduction)  # before, anybody may have answered
    if known and known != introduced.cluster:
        raise Conflict(
            f"this host has networks of its own, and the token is of another cluster ({introduced.cluster})",
            "detach its containers and delete its networks, or begin with this host: linkspan cluster init",
        )
    key = files.once(files.key, certificates.new_key)
    request = certificates.request(key).decode()
    wish = JoinWish(token.id, token.secret, host, name, request, files.secret(files.password))
    welcome = await _asked(signer, "/v1/join", context, Welcome, wish)
    if not welcome.endpoints:
        raise Invalid(f"the signer at {signer} names no etcd", "is it another version of linkspan?")
    url = files.url(welcome.endpoints, host)
    check_url(url)
    files.put(files.authority, authority.encode())
    files.put(files.certificate, welcome.certificate.encode())
    return url, welcome.cluster


async def _authority(signer: str, token: JoinToken) -> str:
    """Return the signer's client authority (PEM, nothing else). Raises Denied if it is not the token's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the hash of what it answers is compared
    found = await _asked(signer, "/v1/authority", context, Introduction)
    with contextlib.suppress(Invalid):
        authority = certificates.single(found.authority.encode())
        if certificates.fingerprint(authority) == token.authority:
            return authority.decode()
    raise Denied(
        f"the server at {signer} is not of the token's cluster: its authority has another hash; "
        "the token's secret was not sent",
        "is the token of another cluster, or was the cluster made again? If neither, somebody answers in its place",
    )


async def _asked(
    signer: str, path: str, context: ssl.SSLContext, kind: type[T], body: msgspec.Struct | None = None
) -> T:
    """Return a signer's answer. Raises its own error, Denied if it is not who it should be, or Unavailable.

    The error of a server whose certificate is not checked is not shown: anybody could speak to the operator so.
    """
    where = f"signer {signer}"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session,
            session.request(
                "GET" if body is None else "POST",
                f"https://{signer}{path}",
                data=None if body is None else msgspec.json.encode(body),
                ssl=context,
                allow_redirects=False,
            ) as response,
        ):
            data, status = await _body(response), response.status
    except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as error:
        raise Denied(
            f"{where}: its certificate is not of the token's cluster: the token's secret was not sent",
            "somebody may answer in its place; compare the address in the token with the first host's",
        ) from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        why = f"no answer within {SECONDS:.0f} s" if isinstance(error, TimeoutError) else _why(error)
        hint = "does the first host's agent run there, and does a firewall let TCP ports 5379 and 5381 pass?"
        raise Unavailable(f"{where} cannot be reached: {why}", hint) from error
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        if status == 200:
            return msgspec.json.decode(data, type=kind)
        if context.verify_mode is ssl.CERT_REQUIRED:
            said = msgspec.json.decode(data, type=Problem)
            raise _KINDS.get(said.code, Unavailable)(_printable(said.message), _printable(said.hint))
    raise Unavailable(f"{where}: its answer ({status}) cannot be understood", "is it another version of linkspan?")


def _why(error: Exception) -> str:
    return _printable(getattr(error, "strerror", None) or str(error)).lower()


def _printable(text: str) -> str:
    """Return a text without what a terminal would carry out."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """Return an answer's body, of at most LARGEST bytes."""
    data = b""
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > LARGEST:
            break
    return data
