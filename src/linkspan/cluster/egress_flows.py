"""Egress flows: which open flows on this host do not follow when a network's egress address comes, changes or goes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.core.model import Network
from linkspan.kernel.probe.conntrack import Flow

Exit = tuple[str, int]
"""A network and a family."""
Holding = tuple[Prefix, str]
"""An egress address, and the id of the host that holds it."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A change of an egress address: ``here``, this host holds it now; ``lost``, it is not the network's any more."""

    address: Prefix
    here: bool = False
    lost: bool = False


def turned(
    here: str, flowing: Mapping[Exit, Holding], having: Mapping[Exit, Holding], lost: Set[Exit]
) -> Mapping[str, Mapping[int, Turn]]:
    """Return what open flows on the host with the id ``here`` may not follow, by network and family. Pure.

    They follow ``flowing``. Hosts hold the addresses ``having`` now, and what is ``lost`` has none any more. An address
    that nobody holds is no such change: the same host may have it again.
    """
    found: dict[str, dict[int, Turn]] = {}
    for key, (address, holder) in having.items():
        before = flowing.get(key)
        if before is None or before[0] != address or (before[1] != holder and here in (before[1], holder)):
            found.setdefault(key[0], {})[key[1]] = Turn(address=address, here=holder == here)
    for key in lost:
        found.setdefault(key[0], {})[key[1]] = Turn(address=flowing[key][0], lost=True)
    return found


def stale(
    moved: Collection[Network], networks: Collection[Network], turns: Mapping[str, Mapping[int, Turn]], flow: Flow
) -> bool:
    """Return whether a flow leaves a network with another source than a new one on this host after these changes.

    ``turns`` has the changes by network and family, and ``moved`` these networks: there may be far fewer of them, and a
    host has many flows. Connection tracking treats all of a flow's packets as the first. Without their entries they are
    translated, or sent to the holder, as new ones are.
    """
    source = flow.source
    left = (one for one in moved if any(pool.holds(source) for pool in one.prefixes))
    turn = next((turns[one.name].get(source.family) for one in left), None)
    if turn is None:
        return False
    if turn.lost:  # new ones have an address of the host
        wrong = flow.translated in (None, turn.address)
    else:
        wrong = flow.translated != (turn.address if turn.here else None)
    return wrong and not any(pool.holds(flow.target) for one in networks for pool in one.prefixes)
