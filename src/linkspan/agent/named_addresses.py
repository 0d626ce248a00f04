"""Addresses that the DNS names of policies have on this host, as the kernel's sets have them; what judges ask.

All times are of one clock, in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from linkspan.core.addresses import Prefix, prefix
from linkspan.policy.name_rules import GRACE, LONGEST, REMEMBERED, SHORTEST

MOST = 4096
"""Addresses that a name has at one time, and former ones that are remembered. More are not let through: the owner of a
domain could fill the kernel's memory."""
_WORTH = 5.0
"""Seconds that a new end must be later to be put: every answer from a cache has an end of its own."""
_NEVER = tuple(
    prefix(text)
    for text in (
        *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"),
        *("::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8"),
    )
)
"""Where no name leads (RFC 6890): loopback and link-local addresses, those of many, and those of nobody."""


def lifetime(ttl: int) -> int:
    """Return for how many seconds an answer counts."""
    return min(max(ttl, SHORTEST), LONGEST) + GRACE


def usable(address: Prefix, pools: Iterable[Prefix], hosts: Collection[str]) -> bool:
    """Return whether a name may have an address: none of a pool, and none of a host of the cluster.

    Otherwise the owner of a name could let containers reach what its policy closes to them (DNS rebinding).
    """
    return address.address not in hosts and not any(one.holds(address) for one in (*_NEVER, *pools))


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """An address that a name has now, and the seconds for which it has it at least."""

    address: str
    seconds: int


class _Ends(msgspec.Struct):
    """When an address leaves the sets of a name: that of those which are let through, and that of the former ones."""

    now: float
    past: float


class NamedAddresses:
    """Knows by name which addresses are let through, and which ones were within a week."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: dict[str, dict[str, _Ends]] = {}
        self.full: set[str] = set()
        """Names that have more addresses than MOST."""

    def keep(self, names: Collection[str]) -> None:
        """Know about these names from now on, and forget all others."""
        self._of = {name: self._of.get(name, {}) for name in names}
        self.full &= self._of.keys()

    def learn(self, name: str, at: Prefix, seconds: float) -> tuple[float, float]:
        """Take in that a name has an address for so long; return for how long each set should have it, 0: no change."""
        now, address, known = self._clock(), at.address, self._of.get(name)
        if known is None:
            return 0, 0
        ends, remembers = known.get(address), True
        if ends is None:
            if len(known) >= MOST:
                self._drop_ended(known, now)
                remembers = len(known) < MOST
            if not remembers and sum(one.now > now for one in known.values()) >= MOST:
                self.full.add(name)
                return 0, 0
            self.full.discard(name)
            ends = known[address] = _Ends(0, 0)
        passing = seconds if now + seconds > ends.now + _WORTH else 0.0
        past = REMEMBERED if remembers and now + REMEMBERED > ends.past + LONGEST else 0.0  # not with every answer
        ends.now, ends.past = max(ends.now, now + passing), max(ends.past, now + past)
        return passing, past

    def found(self, name: str, address: str, *, now: float = 0, past: float = 0) -> None:
        """Take in what a set of the kernel has: an address, and the seconds until it leaves the set."""
        known, at = self._of.get(name), self._clock()
        if known is not None:
            ends = known.setdefault(address, _Ends(0, 0))
            ends.now, ends.past = max(ends.now, at + now), max(ends.past, at + past)

    def left(self, name: str) -> list[tuple[Prefix, float, float]]:
        """Return each address of a name with the seconds for which each of its two sets should still have it."""
        at = self._clock()
        known = self._of.get(name, {}).items()
        return [(prefix(address), max(ends.now - at, 0), max(ends.past - at, 0)) for address, ends in known]

    def _drop_ended(self, known: dict[str, _Ends], now: float) -> None:
        for address in [address for address, ends in known.items() if max(ends.now, ends.past) <= now]:
            del known[address]

    def of(self, name: str) -> list[Named]:
        """Return the addresses that a name has now."""
        at = self._clock()
        found = self._of.get(name, {}).items()
        return [Named(address=one, seconds=round(ends.now - at)) for one, ends in sorted(found) if ends.now > at]

    def by_address(self, *, past: bool = False) -> Mapping[str, frozenset[str]]:
        """Return by address the names that have it now; ``past``: or had it within a week. A value of its own."""
        at = self._clock()
        found: dict[str, set[str]] = {}
        for name, known in self._of.items():
            for address, ends in known.items():
                if (max(ends.now, ends.past) if past else ends.now) > at:
                    found.setdefault(address, set()).add(name)
        return {address: frozenset(some) for address, some in found.items()}
