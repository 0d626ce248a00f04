"""What a network is warned of when it is made or changed: it may be so, and will not do what was wished; pure."""

from __future__ import annotations

from collections.abc import Iterator

from linkspan.backends import backend
from linkspan.model import Network, Underlay


def cautions(network: Network, hosts: int, here: Underlay | None) -> Iterator[str]:
    """Yield a sentence for each, for a cluster of so many hosts, as this one sees it."""
    way = backend(network.backend)
    if not way.crosses_hosts:
        return
    for pool in network.prefixes if network.ipam == "block" else ():
        length = network.subnet_len[str(pool.family)]
        blocks = 1 << (length - pool.length)
        if blocks < hosts:
            yield (
                f"pool {pool} has {blocks} block{'s'[: blocks > 1]} of /{length}, and there are {hosts} hosts: "
                "the last ones get none (a longer --subnet-len, or --ipam exact)"
            )
    if here is not None and (most := here.mtu - way.overhead[here.outer]) < network.mtu:
        yield (
            f"MTU {network.mtu} is more than this host's underlay carries, {most}: larger packets will not arrive "
            f"(linkspan network update {network.name} --mtu {most})"
        )
