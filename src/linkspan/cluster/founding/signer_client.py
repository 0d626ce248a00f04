"""Client of a signer: one request by TLS, and what its answer or its silence means."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from typing import TypeVar

import aiohttp
import msgspec

from linkspan.cluster.founding.signer import Problem
from linkspan.core import errors
from linkspan.core.errors import Denied, LinkspanError, Unavailable

SECONDS = 20.0
"""Seconds for one answer of a signer: its etcd may be restarting."""
LARGEST = 64 << 10
"""Largest answer in bytes."""
JOIN_AGAIN = "on a voter: linkspan cluster token create; then here: linkspan cluster join TOKEN (it keeps what it has)"
"""What to do where a host's certificate is of no use any more."""
T = TypeVar("T")

_KINDS: Mapping[str, type[LinkspanError]] = {
    kind.code: kind for kind in (errors.Denied, errors.Invalid, errors.Conflict, errors.Unavailable)
}


async def asked(
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
        why = getattr(getattr(error, "certificate_error", error), "verify_message", "") or "it has another name"
        raise Denied(
            f"{where}: its certificate is not of this cluster ({why}): no secret was sent",
            "somebody may answer in its place; compare the address with the voter's, and the clocks of both hosts",
        ) from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        if (told := _refused(where, error)) is not None:
            raise told from error
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


def _refused(where: str, error: BaseException | None) -> Denied | None:
    """Return the error for a handshake in which the signer refused our certificate (RFC 8446 section 6.2)."""
    while error is not None:
        word = (getattr(error, "reason", None) or "") if isinstance(error, ssl.SSLError) else ""
        if "ALERT" in word and ("CERTIFICATE" in word or "UNKNOWN_CA" in word):
            why = word.rpartition("ALERT_")[2].replace("_", " ").lower()
            return Denied(f"{where} refuses this host's certificate: {why}", JOIN_AGAIN)
        error = getattr(error, "os_error", None) or error.__cause__ or error.__context__
    return None


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
