"""Addresses that the DNS names of policies have on this host, as the kernel's sets have them; what judges ask.

All times are of one clock, in seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from linkspan.core.addresses import Prefix, prefix
from linkspan.policy.name_rules import GRACE, LONGEST, REMEMBERED, SHORTEST

MOST = 4096
"""Addresses that a name has at one time, and former ones that are remembered. More are not let through: the owner of a
domain could fill the kernel's memory."""
WORTH = 5.0
"""Seconds that a new end must be later to be put: every answer from a cache has an end of its own."""
_SWEEP = 1.0
"""Seconds between looks for addresses whose time is over, of a name that has as many as it may."""
_NEVER = tuple(
    prefix(text)
    for text in (
        *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"),
        *("::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8"),
    )
)
"""Where no name leads (RFC 6890): loopback and link-local addresses, those of many, and those of nobody."""
_METADATA = frozenset(("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
"""Where clouds tell a machine its secrets, besides 169.254.0.0/16."""
_TRANSLATED, _SIX_TO_FOUR = prefix("64:ff9b::/96"), prefix("2002::/16")
"""Addresses that have one of IPv4 in them, to which a gateway leads (RFC 6052, RFC 3056)."""


def lifetime(ttl: int) -> int:
    """Return for how many seconds an answer counts."""
    return min(max(ttl, SHORTEST), LONGEST) + GRACE


class Usable:
    """Addresses that a name may have: none of a pool, of a host of the cluster, or with a cloud's secrets.

    Otherwise the owner of a name could let containers reach what its policy closes to them (DNS rebinding).
    """

    def __init__(self, pools: Iterable[Prefix] = (), hosts: Iterable[str] = ()) -> None:
        self._closed = _METADATA.union(hosts)
        self._nets: dict[tuple[int, int], set[int]] = {}
        """By the bits of an address and of its rest: there are few lengths, though there may be many pools."""
        for one in (*_NEVER, *pools):
            bits = len(one.packed) * 8
            rest = bits - one.length
            self._nets.setdefault((bits, rest), set()).add(int.from_bytes(one.packed, "big") >> rest)

    def __call__(self, address: Prefix) -> bool:
        """Return whether a name may have an address."""
        if address.address in self._closed:
            return False
        number, size = int.from_bytes(address.packed, "big"), len(address.packed) * 8
        if any(bits == size and number >> rest in some for (bits, rest), some in self._nets.items()):
            return False
        inner = _inner(address)
        return inner is None or self(inner)


def _inner(address: Prefix) -> Prefix | None:
    """Return the address of IPv4 that one of IPv6 leads to by a gateway, None if there is none."""
    if _TRANSLATED.holds(address):
        return Prefix(address.packed[12:], 32)
    return Prefix(address.packed[2:6], 32) if _SIX_TO_FOUR.holds(address) else None


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """An address that a name has now, and the seconds for which it has it at least."""

    address: str
    seconds: int


class _Ends:
    """Times at which each of at most MOST addresses leaves a set."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self._swept = -math.inf

    def take(self, address: str, end: float, now: float) -> bool:
        """Take in an address's end; return whether there was room for it."""
        if address not in self.at and not self._has_room(now):
            return False
        self.at[address] = max(end, self.at.get(address, 0))
        return True

    def _has_room(self, now: float) -> bool:
        """Drop what has ended if there is no room, and seldom: an answer may have hundreds of new addresses."""
        if len(self.at) >= MOST and now >= self._swept + _SWEEP:
            self._swept = now
            self.at = {address: end for address, end in self.at.items() if end > now}
        return len(self.at) < MOST


class _Known:
    """Addresses of a name: those that are let through, and the former ones."""

    def __init__(self) -> None:
        self.now, self.past = _Ends(), _Ends()


class NamedAddresses:
    """Knows by name which addresses are let through, and which ones were within a week."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: dict[str, _Known] = {}
        self.full: set[str] = set()
        """Names that have more addresses than MOST."""

    def keep(self, names: Collection[str]) -> None:
        """Know about these names from now on, and forget all others."""
        self._of = {name: self._of.get(name) or _Known() for name in names}
        self.full &= self._of.keys()

    def learn(self, name: str, at: Prefix, seconds: float) -> tuple[float, float]:
        """Take in that a name has an address for so long; return for how long each set should have it, 0: no change."""
        now, address, known = self._clock(), at.address, self._of.get(name)
        if known is None:
            return 0, 0
        passing = past = 0.0
        if now + seconds > known.now.at.get(address, 0) + WORTH:
            if not known.now.take(address, now + seconds, now):
                self.full.add(name)
                return 0, 0
            self.full.discard(name)
            passing = seconds
        if now + REMEMBERED > known.past.at.get(address, 0) + LONGEST:  # not with every answer
            past = REMEMBERED if known.past.take(address, now + REMEMBERED, now) else 0.0
        return passing, past

    def drop(self, usable: Callable[[Prefix], bool]) -> list[tuple[str, Prefix]]:
        """Forget the addresses that no name may have any more; return each with its name."""
        gone = []
        for name, known in self._of.items():
            for text in known.now.at.keys() | known.past.at.keys():
                if not usable(address := prefix(text)):
                    known.now.at.pop(text, None)
                    known.past.at.pop(text, None)
                    gone.append((name, address))
        return gone

    def found(self, name: str, address: str, *, now: float = 0, past: float = 0) -> None:
        """Take in what a set of the kernel has: an address, and the seconds until it leaves the set."""
        known, at = self._of.get(name), self._clock()
        if known is not None:
            for ends, seconds in ((known.now, now), (known.past, past)):
                if seconds:
                    ends.take(address, at + seconds, at)

    def left(self, name: str) -> list[tuple[Prefix, float, float]]:
        """Return each address of a name with the seconds for which each of its two sets should still have it."""
        at, known = self._clock(), self._of.get(name) or _Known()
        now, past = known.now.at, known.past.at
        return [
            (prefix(one), max(now.get(one, 0) - at, 0), max(past.get(one, 0) - at, 0)) for one in {**now, **past}
        ]

    def of(self, name: str) -> list[Named]:
        """Return the addresses that a name has now."""
        at = self._clock()
        found = (self._of.get(name) or _Known()).now.at.items()
        return [Named(address=one, seconds=round(end - at)) for one, end in sorted(found) if end > at]

    def by_address(self, *, past: bool = False) -> Mapping[str, frozenset[str]]:
        """Return by address the names that have it now; ``past``: or had it within a week. A value of its own."""
        at = self._clock()
        found: dict[str, set[str]] = {}
        for name, known in self._of.items():
            for ends in (known.now, known.past) if past else (known.now,):
                for address, end in ends.at.items():
                    if end > at:
                        found.setdefault(address, set()).add(name)
        return {address: frozenset(some) for address, some in found.items()}
