"""Entry: a host joins a cluster by a token, and keeps what the signer gives it."""

from __future__ import annotations

import contextlib
import ssl

from linkspan.cluster.founding import certificates
from linkspan.cluster.founding.join_token import JoinToken
from linkspan.cluster.founding.signer import Introduction, JoinWish, Welcome
from linkspan.cluster.founding.signer_client import asked
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import Conflict, Denied, Invalid, LinkspanError, Unavailable
from linkspan.core.store_url import check_url


async def enter(files: TrustFiles, token: JoinToken, host: str, name: str, known: str) -> tuple[str, str]:
    """Join by a token; return the store's URL and the cluster's id.

    ``known`` is the id of the cluster in which this host has networks, '' if it has none: it joins no other. The host's
    key and password are made once, so a join that broke off can be repeated, and a repeated one leaves the host inside.
    If a signer does not answer, or another server has its address by now, the next one is asked. Raises Denied,
    Invalid, Conflict or Unavailable.
    """
    failed: list[LinkspanError] = []
    for signer in token.signers:
        try:
            authority, cluster = await _introduced(signer, token)
            _refuse_other(known, cluster)
            return await _enter_at(signer, files, authority, token, host, name)
        except (Unavailable, _Stranger) as error:
            failed.append(error)
    worst = next((one for one in failed if isinstance(one, _Stranger)), failed[0])
    raise type(worst)("; ".join(error.message for error in failed), worst.hint)


class _Stranger(Denied):
    """The server at a signer's address is not of the token's cluster, and has learnt nothing."""


async def _introduced(signer: str, token: JoinToken) -> tuple[str, str]:
    """Return the authority (PEM) of a token's cluster, and the cluster's id, as its signer says it.

    Raises _Stranger or Unavailable.
    """
    authority = await _authority(signer, token)
    context = ssl.create_default_context(cadata=authority)
    try:
        introduced = await asked(signer, "/v1/authority", context, Introduction)  # before, anybody may have answered
    except Denied as error:
        raise _Stranger(error.message, error.hint) from error
    return authority, introduced.cluster


def _refuse_other(known: str, cluster: str) -> None:
    """Raise Conflict if this host has networks, and they are of another cluster."""
    if known and known != cluster:
        raise Conflict(
            f"this host has networks of its own, and the token is of another cluster ({cluster})",
            "detach its containers and delete its networks, or begin with this host: linkspan cluster init",
        )


async def _enter_at(
    signer: str, files: TrustFiles, authority: str, token: JoinToken, host: str, name: str
) -> tuple[str, str]:
    key = files.once(files.key, certificates.new_key)
    request = certificates.request(key).decode()
    wish = JoinWish(token.id, token.secret, host, name, request, files.secret(files.password))
    context = ssl.create_default_context(cadata=authority)
    welcome = await asked(signer, "/v1/join", context, Welcome, wish)
    if not welcome.endpoints:
        raise Invalid(f"the signer at {signer} names no etcd", "is it another version of linkspan?")
    url = files.url(welcome.endpoints, host)
    check_url(url)
    files.put(files.authority, authority.encode())
    files.put(files.certificate, welcome.certificate.encode())
    return url, welcome.cluster


async def _authority(signer: str, token: JoinToken) -> str:
    """Return the signer's client authority (PEM, nothing else). Raises _Stranger if it is not the token's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the hash of what it answers is compared
    found = await asked(signer, "/v1/authority", context, Introduction)
    with contextlib.suppress(Invalid):
        authority = certificates.single(found.authority.encode())
        if certificates.fingerprint(authority) == token.authority:
            return authority.decode()
    raise _Stranger(
        f"the server at {signer} is not of the token's cluster: its authority has another hash; "
        "the token's secret was not sent",
        "is the token older than the last `linkspan cluster rotate-ca`, or of another cluster? Then take a new one: "
        "linkspan cluster token create. If neither, somebody answers in the signer's place",
    )
