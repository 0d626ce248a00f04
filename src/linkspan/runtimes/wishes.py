"""Options of engines' users for a network: refused unless the linkspan network has that property."""

from __future__ import annotations

from linkspan.core.errors import Invalid
from linkspan.core.model import Network


def check(network: Network, *, internal: str, ipv6: str) -> None:
    """Raise Invalid if an option asks for something that the network is not.

    Each argument is the option's name, as the engine's users know it, or "" if it was not given.
    """
    name = network.name
    if internal and not network.internal:
        raise Invalid(
            f"network {name} is not internal, so {internal} would have no effect",
            f"leave it out, or create an internal network: linkspan network create {name}-internal --pool "
            "... --internal",
        )
    if ipv6 and not any(pool.family == 6 for pool in network.prefixes):
        raise Invalid(
            f"network {name} has no IPv6 pool, so {ipv6} would have no effect",
            f"leave it out, or add a pool: linkspan network update {name} --add-pool PREFIX",
        )
