"""Caller: the host that shows its certificate at the signer's port, and whether it is still in the cluster.

The TLS handshake has proved that whoever asks has the key. It knows no list of revoked certificates, so everything that
a host may ask for is answered after ``in_force`` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from linkspan.cluster.founding.signer import HOSTS, REVOKED, JoinedHost, Revoked
from linkspan.cluster.founding.signer_client import JOIN_AGAIN
from linkspan.core.errors import Denied
from linkspan.core.model import checked_name
from linkspan.store.vault import Vault

if TYPE_CHECKING:
    from linkspan.cluster.founding.certificates import Shown


def presented(request: web.Request) -> Shown:
    """Return the certificate that the caller of a request has shown. Raises Denied if it is no host's."""
    from linkspan.cluster.founding.certificates import Shown  # cryptography: 10 MB that only signing needs

    tls = request.get_extra_info("ssl_object")
    der = None if tls is None else tls.getpeercert(binary_form=True)
    if der is None:
        raise Denied("whoever asks for this must show a host's certificate")
    return Shown(der)


async def in_force(vault: Vault, shown: Shown) -> tuple[JoinedHost, int]:
    """Return what is kept of the host that showed a certificate, and the revision of that.

    An id may have come back with another key after its host was forgotten, and a restored vault lacks the serial
    numbers of what was signed later. So it is the key that shows whose a certificate is. Raises Denied if the host is
    not in the cluster any more, or the certificate is revoked or of an earlier key.
    """
    known, revision = await vault.get(HOSTS + checked_name(shown.host, "host id:"), JoinedHost)
    revoked, _ = await vault.get(REVOKED + shown.serial, Revoked)
    if known is None or known.forgotten:
        raise Denied(f"host {shown.host} is not in the cluster any more", "linkspan uninstall, then join again")
    if revoked is not None or shown.key_hash != known.key:
        raise Denied(f"the certificate of host {known.name} is not in force any more", JOIN_AGAIN)
    return known, revision
