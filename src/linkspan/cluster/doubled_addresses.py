"""Doubled addresses, as the allocator needs to know them: those that two agents may have given out."""

from __future__ import annotations

from typing import Protocol

from linkspan.core.addresses import Prefix


class Doubled(Protocol):
    """Addresses of this host's own blocks that others' containers have.

    A block may have changed its owner, or another agent may use this host's id.
    """

    def elsewhere(self, network: str, block: Prefix) -> dict[Prefix, str]:
        """Return these addresses of a block, with a text for each."""

    async def know(self, network: str) -> bool:
        """Wait until ``elsewhere`` is complete for a network; return whether it is."""
