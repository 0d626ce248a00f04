"""Options of engines' users: for a network, refused unless the linkspan network is so; for a container, its limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from linkspan.core import bandwidth
from linkspan.core.errors import Invalid
from linkspan.core.model import Bandwidth, Network

LIMITS = ("bandwidth-in", "bandwidth-out")
"""A container's options for a network. They are two, because both engines' users separate options by commas."""


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


def check_options(options: Iterable[str]) -> None:
    """Refuse options of an engine's network, apart from the one that names linkspan's. Raises Invalid."""
    unknown = sorted(set(options) - {"network"})
    if not unknown:
        return
    hint = "the only option is network=NAME; the linkspan network has all others"
    if not set(LIMITS).isdisjoint(unknown):
        hint = "a limit is a container's: give it with the container's --network, not to the whole network"
    raise Invalid(f"option {', '.join(unknown)} is unknown to driver linkspan", hint)


def limits(options: Mapping[str, object]) -> Bandwidth | None:
    """Return the limits that a container's options for a network ask for, None if there are none.

    Raises Invalid for another option, and for a value that is not a rate.
    """
    if unknown := sorted(options.keys() - set(LIMITS)):
        raise Invalid(
            f"option {', '.join(unknown)} is unknown to driver linkspan",
            "a container's options for its network are bandwidth-in=20M and bandwidth-out=5M (bits a second)",
        )
    if not options:
        return None
    rates = {name: bandwidth.rate(str(value)) for name, value in options.items()}
    received, sent = (rates.get(name, 0) for name in LIMITS)
    return Bandwidth(ingress_rate=received, egress_rate=sent)
