"""nftables links: the fast path's chains at links, and the maps that lead to links (``fast=true``).

They are as other chains and elements of ours, with the same driver (`nftables_objects.py`), but go with their links.
"""

from __future__ import annotations

import msgspec

from linkspan.core.kinds import Event, Link
from linkspan.core.states.host import HOST, NftExit, NftLinkChain
from linkspan.kernel.drivers.nftables_objects import CHAIN, ELEMENT


def _of_link(state: NftLinkChain) -> tuple[Link, ...]:
    return ((HOST, state.link),)


def _to_link(state: NftExit) -> tuple[Link, ...]:
    return ((HOST, state.data[0]),)


_EVENTS = CHAIN.events | {Event.LINK_GONE, Event.TUNNEL}
"""Not LINK: each attach makes such events, and a listing of a thousand policies' chains takes some 30 ms."""

KINDS = (
    msgspec.structs.replace(
        CHAIN,
        state=NftLinkChain,
        rank=46,
        merges=False,
        purpose="the fast path of what comes in by a link, or goes out (fast=true)",
        on=_of_link,
        events=_EVENTS,
    ),
    msgspec.structs.replace(
        ELEMENT,
        state=NftExit,
        rank=47,
        purpose="the link by which the fast path reaches a container (fast=true)",
        on=_to_link,
        events=_EVENTS,
    ),
)
