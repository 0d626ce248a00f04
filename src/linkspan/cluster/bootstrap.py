"""Bootstrap: wait for records. Without them the first resync would delete everything on this host."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager

from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.cluster.bootstrap")

AGAIN = 1.0
"""Seconds between two checks for records."""


async def known(replica: Replica, waiting: AbstractAsyncContextManager[None]) -> None:
    """Wait until there are records, or the store has confirmed that it has none; ``waiting`` is entered meanwhile."""
    if _known(replica):
        return
    said = ""
    async with waiting:
        while not _known(replica):
            if said != replica.problem:
                said = replica.problem
                log.warning("waiting for the store: %s", f"{said}; {replica.fix}" if replica.fix else said)
            await asyncio.sleep(AGAIN)


def _known(replica: Replica) -> bool:
    return bool(replica.records) or replica.listed
