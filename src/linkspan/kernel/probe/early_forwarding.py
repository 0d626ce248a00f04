"""Forwarding at a link's ingress: whether this kernel and this nftables can."""

from __future__ import annotations

import contextlib
import functools

from linkspan.core.errors import LinkspanError
from linkspan.kernel.io.nftables import Nft

_RULES = """
add table netdev linkspan-try
add map netdev linkspan-try ends { type ipv4_addr : iface_index; }
add chain netdev linkspan-try c { type filter hook ingress device "lo" priority filter; }
add rule netdev linkspan-try c ip saddr 192.0.2.1 fwd ip to ip daddr device ip daddr map @ends
add rule netdev linkspan-try c ip6 saddr 2001:db8::1 fwd ip6 to ip6 daddr device "lo"
"""


def possible() -> bool:
    """Return whether a link's ingress hook can forward packets. Nothing is changed, and a success is remembered."""
    try:
        _try_out()
    except LinkspanError:
        return False
    return True


@functools.cache
def _try_out() -> None:
    with contextlib.closing(Nft()) as nft:
        nft.try_out(_RULES)
