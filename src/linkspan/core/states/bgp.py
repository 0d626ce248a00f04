"""BGP values: a session, what its filters accept, and how large a mesh does well."""

from __future__ import annotations

import msgspec

from linkspan.core.addresses import Prefix

HOLD = 90
"""Seconds of silence after which a peer counts as dead (RFC 4271 section 10)."""


MESH = 100
"""Hosts up to which a mesh does well: it has a session for each pair of hosts. Calico's documents have the same bound
for its mesh (Configure BGP peering)."""

REFLECTORS = (
    "docs/bgp.md (Use route reflectors instead of the mesh): "
    "linkspan host set --all bgp.peer.rr1.address=ADDRESS bgp.peer.rr2.address=ADDRESS; "
    "once `linkspan bgp peers` shows both as established: linkspan host set --all bgp.mesh=false"
)
"""What to do about a mesh that is too large."""


def crowded(hosts: int) -> str:
    """Return that a mesh of so many hosts is too large, '' if it is not."""
    if hosts <= MESH:
        return ""
    sessions = f"{hosts} hosts form a full mesh, and each has {hosts - 1} BGP sessions"
    return f"{sessions}; beyond {MESH} hosts use route reflectors"


class Span(msgspec.Struct, frozen=True):
    """A prefix in a filter: itself, or with ``longer`` all prefixes inside it too."""

    prefix: Prefix
    longer: bool = False

    def __str__(self) -> str:
        return f"{self.prefix}{'+' if self.longer else ''}"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A desired session.

    ``name`` is the peer's as users write it (a host's name, or NAME of ``bgp.peer.NAME``), ``protocol`` the
    speaker's. ``prefixes`` is how many of each family are accepted: 0 for no limit, None if it follows from
    the cluster's records. ``source`` is this host's address in it, '' if the kernel chooses. ``multihop`` is
    how many hops away the peer may be, 0 for a peer on the link. ``imports`` and ``exports`` are accepted and
    announced in addition to the networks' pools.
    """

    name: str
    protocol: str
    mesh: bool
    address: str
    source: str
    local_as: int
    remote_as: int
    password_file: str = ""
    ttl_security: bool = False
    multihop: int = 0
    hold: int = HOLD
    prefixes: int | None = None
    imports: tuple[Span, ...] = ()
    exports: tuple[Span, ...] = ()
