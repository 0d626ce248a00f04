"""Entry: a host joins a cluster by a token, and keeps what the signer gives it."""

from __future__ import annotations

import contextlib
import ssl

from linkspan.cluster.founding import certificates
from linkspan.cluster.founding.join_token import JoinToken
from linkspan.cluster.founding.signer import Introduction, JoinWish, Welcome
from linkspan.cluster.founding.signer_client import asked
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import Conflict, Denied, Invalid, Unavailable
from linkspan.core.store_url import check_url


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
    introduced = await asked(signer, "/v1/authority", context, Introduction)  # before, anybody may have answered
    if known and known != introduced.cluster:
        raise Conflict(
            f"this host has networks of its own, and the token is of another cluster ({introduced.cluster})",
            "detach its containers and delete its networks, or begin with this host: linkspan cluster init",
        )
    key = files.once(files.key, certificates.new_key)
    request = certificates.request(key).decode()
    wish = JoinWish(token.id, token.secret, host, name, request, files.secret(files.password))
    welcome = await asked(signer, "/v1/join", context, Welcome, wish)
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
    found = await asked(signer, "/v1/authority", context, Introduction)
    with contextlib.suppress(Invalid):
        authority = certificates.single(found.authority.encode())
        if certificates.fingerprint(authority) == token.authority:
            return authority.decode()
    raise Denied(
        f"the server at {signer} is not of the token's cluster: its authority has another hash; "
        "the token's secret was not sent",
        "is the token of another cluster, or was the cluster made again? If neither, somebody answers in its place",
    )
