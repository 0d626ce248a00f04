"""Address probe: asks on this host's links whether another machine has an address already (RFC 5227, RFC 4862).

Two machines with one address cut each other off, at random. Whoever is asked before an address is put answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from linkspan.core.addresses import Prefix, mac_text
from linkspan.kernel.probe import arp
from linkspan.kernel.worker import Worker

TRIES, WAIT = 2, 0.3
"""Questions, and seconds for each: a machine answers within milliseconds, and a network must not wait long."""


async def rivals(worker: Worker, addresses: Collection[Prefix]) -> dict[Prefix, str]:
    """Return the addresses that another machine answers for, each with words that say which machine.

    Addresses of no subnet here, and those on links without MACs, cannot be asked for. Takes TRIES times WAIT if nobody
    answers.
    """
    wanted = {address.packed: address for address in addresses}
    links = await worker.run_brief(worker.machine.egress.asking, addresses)
    asked = (asyncio.to_thread(arp.answering, link, sources, TRIES, WAIT) for link, sources in links.items())
    return {
        wanted[address]: f"another machine, with MAC {mac_text(mac)} on {link}"
        for link, heard in zip(links, await asyncio.gather(*asked), strict=True)
        for address, mac in heard.items()
        if mac
    }
