"""Address allocator of one pool: which addresses are in use, by whom, and which is next.

The naive order, the lowest free address first, gives an address again at once, while neighbours' caches,
conntrack entries and DNS answers still lead to its last owner. So a block goes forward instead: a cursor over
the addresses never used, then the released ones, oldest first. The oldest has been in cool-down the longest:
if even that one is still in cool-down, no other is left, and a container without an address is worse.

Everything is in memory and O(1) for any number of addresses in use; reservations cost O(log n) of their own
number. The journal keeps the addresses in use over restarts, and ``restore`` and ``cool`` put them back from
its rows.

An address is in one of three places, and never leaves all of them again once it was in one: ``_held``,
``_released`` (given again from its front) or ``_parked`` (released, but inside a reservation). The ranges in
``_fresh`` may therefore contain such addresses: the cursor steps over them.
"""

from __future__ import annotations

import bisect
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping

import msgspec

from linkspan.core.addresses import BITS, Prefix, prefix
from linkspan.core.errors import Conflict, Exhausted, Invalid, NotFound

COOLDOWN = 60.0
"""Seconds; the kernel keeps a stale neighbour at least this long (gc_stale_time, arp(7))."""

REMEMBERED = 4096
"""Released addresses that are kept in order while fresh ones last. Beyond that number the oldest one past its
cool-down is given first, so that a /64 does not remember every address that it ever gave."""

ROUTED_GATEWAY = {4: prefix("169.254.1.1/32"), 6: prefix("fe80::1/128")}
"""Gateway of a routed pool without an address for one."""


class Allocation(msgspec.Struct, frozen=True):
    """An address that was given; ``reused``: another endpoint had it before, so caches may need an update."""

    address: Prefix
    reused: bool


def _spare(pool: Prefix) -> bool:
    """Return whether the pool can set addresses aside: /31 (RFC 3021), /127 (RFC 6164) and longer cannot."""
    return pool.length < BITS[pool.family] - 1


def gateway(pool: Prefix, routed: bool) -> Prefix:
    """Return the gateway of a pool: with the pool's length on a bridge, without it if endpoints are routed.

    Raises Invalid for a bridge on a single address.
    """
    if routed:
        return pool.at(1).single() if _spare(pool) else ROUTED_GATEWAY[pool.family]
    if pool.length == BITS[pool.family]:
        raise Invalid(
            f"pool {pool} has one address, and a bridge needs one for itself",
            "use a larger pool, or --opt mode=routed",
        )
    return pool.at(1) if _spare(pool) else pool.at(0)


def usable(pool: Prefix, routed: bool) -> tuple[int, int]:
    """Return the lowest and the highest address that a container may have, as integers.

    These exclude the network address (IPv6: the subnet-router anycast address, RFC 4291 2.6.1), the gateway,
    which is the next one, and IPv4's broadcast address.
    """
    last = pool.first + pool.size - 1
    if _spare(pool):
        return pool.first + 2, last - (pool.family == 4)
    return (pool.first if routed else pool.first + 1), last


class Block:
    """The allocator of one prefix. ``network`` is for messages; times come from any clock that does not go back."""

    def __init__(
        self,
        pool: Prefix,
        reserved: Iterable[Prefix] = (),
        cooldown: float = COOLDOWN,
        *,
        routed: bool = False,
        network: str = "",
    ) -> None:
        self.pool = pool
        self.gateway = gateway(pool, routed)
        self.cooldown = cooldown
        self.low, self.high = usable(pool, routed)
        self._name = f"pool {pool} of network {network}" if network else f"pool {pool}"
        self._width = len(pool.packed)
        self._held: dict[bytes, str] = {}
        self._holders: Counter[str] = Counter()
        self._released: OrderedDict[bytes, float] = OrderedDict()
        self._parked: dict[bytes, float] = {}
        self._fresh = deque([(self.low, self.high)])
        self._reserved = {p.network() for p in reserved if p.overlaps(pool)}
        self._measure()

    @property
    def held(self) -> Mapping[bytes, str]:
        """Return the owner of each packed address in use."""
        return types.MappingProxyType(self._held)

    @property
    def reserved(self) -> frozenset[Prefix]:
        """Return the reservations that touch this pool."""
        return frozenset(self._reserved)

    def allocate(self, now: float, holder: str = "") -> Allocation:
        """Give the next address. Raises Exhausted, which says how many are in use and by whom most."""
        packed = self._cooled(now) or self._unused()
        if packed is None:
            packed = self._oldest()
            if packed is None:
                raise self._exhausted()
        return self._hold(packed, holder)

    def take(self, address: Prefix, holder: str) -> Allocation:
        """Give exactly this address, reserved or not.

        Raises Conflict with the owner, or Invalid if no container may have it.
        """
        self._check(address)
        if (other := self._held.get(address.packed)) is not None:
            raise Conflict(
                f"address {address.address} is in use by {other or 'another endpoint'}",
                "choose another, or leave it out to get the next free one",
            )
        return self._hold(address.packed, holder)

    def restore(self, address: Prefix, holder: str) -> None:
        """Put back a recorded owner, at the agent's start. Raises as ``take`` does."""
        self.take(address, holder)

    def release(self, address: Prefix, now: float) -> None:
        """Release an address, which is in cool-down from now on; an address not in use is no error."""
        packed = address.packed
        if (holder := self._held.pop(packed, None)) is None:
            return
        self._holders[holder] -= 1
        if not self._holders[holder]:
            del self._holders[holder]
        self._unreserved_held -= not self._is_reserved(int.from_bytes(packed, "big"))
        self._released[packed] = now

    def cool(self, address: Prefix, since: float) -> None:
        """Put back, in order of time, an address that was released before the agent's start."""
        self._check(address)
        if address.packed not in self._held and address.packed not in self._parked:
            self._released.setdefault(address.packed, since)

    def holder(self, address: Prefix) -> str:
        """Return the owner of the address. Raises NotFound."""
        if (found := self._held.get(address.packed)) is None:
            raise NotFound(f"address {address.address} of {self._name} is not in use")
        return found

    def reserve(self, reservation: Prefix) -> None:
        """Give these addresses only by ``take`` from now on; addresses in use stay in use."""
        if reservation.overlaps(self.pool):
            self._reserved.add(reservation.network())
            self._measure()

    def unreserve(self, reservation: Prefix) -> None:
        """Undo ``reserve``; an unreserved address is no error."""
        gone = reservation.network()
        if gone not in self._reserved:
            return
        self._reserved.remove(gone)
        self._measure()
        first, last = max(gone.first, self.low), min(gone.first + gone.size - 1, self.high)
        if first <= last:
            self._fresh.append((first, last))
        back = [a for a in self._parked if not self._is_reserved(int.from_bytes(a, "big"))]
        if back:
            self._released.update((a, self._parked.pop(a)) for a in back)
            self._released = OrderedDict(sorted(self._released.items(), key=lambda item: item[1]))

    def free(self, now: float = 0.0) -> int:  # noqa: ARG002 - cooling addresses count, whatever the time
        """Return how many ``allocate`` could still give, including those in cool-down, which come last."""
        return self._capacity - self._unreserved_held

    def _hold(self, packed: bytes, holder: str) -> Allocation:
        reused = self._released.pop(packed, None) is not None
        reused |= self._parked.pop(packed, None) is not None
        self._held[packed] = holder
        self._holders[holder] += 1
        self._unreserved_held += not self._is_reserved(int.from_bytes(packed, "big"))
        return Allocation(Prefix(packed, self._width * 8), reused)

    def _unused(self) -> bytes | None:
        """Move the cursor to the next address that was never in use."""
        while self._fresh:
            first, last = self._fresh.popleft()
            while first <= last:
                if (end := self._reserved_until(first)) is not None:
                    first = end + 1
                    continue
                packed = first.to_bytes(self._width, "big")
                first += 1
                if not (packed in self._held or packed in self._released or packed in self._parked):
                    if first <= last:
                        self._fresh.appendleft((first, last))
                    return packed
        return None

    def _cooled(self, now: float) -> bytes | None:
        if len(self._released) <= REMEMBERED:
            return None
        packed = self._oldest()
        return packed if packed is not None and self._released[packed] + self.cooldown <= now else None

    def _oldest(self) -> bytes | None:
        """Return the address that was released first; park those on the way that are reserved now."""
        while self._released:
            packed = next(iter(self._released))
            if not self._is_reserved(int.from_bytes(packed, "big")):
                return packed
            self._parked[packed] = self._released.pop(packed)
        return None

    def _check(self, address: Prefix) -> None:
        value = int.from_bytes(address.packed, "big")
        if self.low <= value <= self.high and address.family == self.pool.family:
            return
        if not self.pool.holds(address.single()):
            raise Invalid(f"address {address.address} is outside {self._name}", f"choose one of {self.pool}")
        if address.packed == self.gateway.packed:
            what = "its gateway"
        elif value == self.pool.first:
            what = "its network address" if self.pool.family == 4 else "its subnet-router anycast address"
        else:
            what = "its broadcast address"
        width = self._width
        low, high = (Prefix(v.to_bytes(width, "big"), width * 8).address for v in (self.low, self.high))
        raise Invalid(
            f"address {address.address} of {self._name} is {what}", f"choose one from {low} to {high}"
        )

    def _exhausted(self) -> Exhausted:
        aside = self.high - self.low + 1 - self._capacity
        message = f"{self._name}: all {self._capacity} addresses are in use"
        if not self._capacity:
            message = f"{self._name}: the pool has no address to give"
        elif self._holders:
            most, count = max(self._holders.items(), key=lambda item: item[1])
            message += f", most by {most or 'endpoints without a name'} ({count})"
        if aside:
            message += f"; {aside} more are reserved"
        return Exhausted(message, "detach containers that are not needed, or add a pool (network update --add-pool)")

    def _measure(self) -> None:
        """Compute again what depends on the reservations."""
        spans: list[tuple[int, int]] = []
        for p in sorted(self._reserved, key=lambda p: (p.first, p.length)):
            first, last = max(p.first, self.low), min(p.first + p.size - 1, self.high)
            if first <= last and not (spans and last <= spans[-1][1]):
                spans.append((first, last))
        self._spans = spans
        self._starts = [first for first, _ in spans]
        self._capacity = self.high - self.low + 1 - sum(last - first + 1 for first, last in spans)
        self._unreserved_held = sum(not self._is_reserved(int.from_bytes(a, "big")) for a in self._held)

    def _reserved_until(self, value: int) -> int | None:
        """Return the last address of the reservation around ``value``, None if there is none."""
        at = bisect.bisect_right(self._starts, value) - 1
        return self._spans[at][1] if at >= 0 and value <= self._spans[at][1] else None

    def _is_reserved(self, value: int) -> bool:
        return bool(self._spans) and self._reserved_until(value) is not None
