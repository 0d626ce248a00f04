"""The ways in which endpoints reach each other, one file each; this list is the feature list."""

from __future__ import annotations

from linkspan.backends import bridge, host, host_gw, ipip, vxlan
from linkspan.backends.bgp import backend as bgp_backend
from linkspan.backends.ipsec import backend as ipsec_backend
from linkspan.backends.sdn import backend as sdn_backend
from linkspan.backends.wireguard import backend as wireguard_backend
from linkspan.core.contracts import Backend
from linkspan.core.errors import Invalid

_ALL: tuple[Backend, ...] = (
    bgp_backend.BACKEND,
    bridge.BACKEND,
    host.BACKEND,
    host_gw.BACKEND,
    ipip.BACKEND,
    ipsec_backend.BACKEND,
    sdn_backend.BACKEND,
    vxlan.BACKEND,
    wireguard_backend.BACKEND,
)
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _ALL}
CROSSING = tuple(name for name, backend in BACKENDS.items() if backend.crosses_hosts)
"""Those by which a network crosses hosts; it can migrate between all of them."""


def backend(name: str) -> Backend:
    """Return the backend with this name. Raises Invalid, listing those there are."""
    try:
        return BACKENDS[name]
    except KeyError:
        raise Invalid(f"backend {name!r} does not exist", f"choose one of {', '.join(BACKENDS)}") from None
