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
BURST = 25
"""Requests between two pauses (``arp.PAUSE``): 500 a second, because the networks of hundreds of addresses wait."""


async def rivals(worker: Worker, addresses: Collection[Prefix]) -> dict[Prefix, str]:
    """Return the addresses that another machine answers for, each with words that say which machine.

    Addresses of no subnet here, and those on links without MACs, cannot be asked for. The links are asked at the same
    time, and so are IPv4 and IPv6. Takes TRIES times WAIT if nobody answers, and a pause for every BURST.
    """
    wanted = {address.packed: address for address in addresses}
    links = await worker.run_brief(worker.machine.egress.asking, addresses)
    asking = [
        (link, {address: source for address, source in sources.items() if source == one})
        for link, sources in links.items()
        for one in dict.fromkeys(sources.values())
    ]
    asked = (asyncio.to_thread(arp.answering, link, some, TRIES, WAIT, BURST) for link, some in asking)
    return {
        wanted[address]: f"another machine, with MAC {mac_text(mac)} on {link}"
        for (link, _), heard in zip(asking, await asyncio.gather(*asked), strict=True)
        for address, mac in heard.items()
        if mac
    }
