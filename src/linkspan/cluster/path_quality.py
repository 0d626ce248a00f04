"""Quality of a path: round trip and loss of the last pings to one address. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

PINGS = 32
"""Pings that count: about a minute of them."""
PATIENCE = 1.0
"""Seconds that a ping must have had for its answer before it counts as lost."""
SMOOTHING = 8
"""How many times the old round trip weighs more than a new one, less one (RFC 6298, section 2)."""
MICRO = 1_000_000
"""Microseconds in a second."""


class PathQuality(msgspec.Struct):
    """Round trip and loss of the pings to one address: at most one of them is under way.

    ``round_trip`` is in seconds and smoothed, 0 before the first answer. ``asked`` of the last PINGS have ended, each
    a bit of ``lost``.
    """

    round_trip: float = 0.0
    asked: int = 0
    lost: int = 0
    number: int = -1
    """Of the ping under way, -1 if there is none."""
    sent: float = 0.0

    @property
    def missed(self) -> int:
        """Return how many of the last pings had no answer."""
        return self.lost.bit_count()

    @property
    def loss(self) -> float:
        """Return which part of the last pings had no answer."""
        return self.missed / self.asked if self.asked else 0.0

    def ask(self, number: int, now: float) -> None:
        """Note that a ping is sent; the one before is lost if it is still under way."""
        if self.number >= 0 and now - self.sent >= PATIENCE:
            self._count(lost=True)
        self.number, self.sent = number, now

    def heard(self, number: int, now: float) -> None:
        """Note an answer. One that comes after the next ping was sent counts as lost already."""
        if number != self.number:
            return
        self.number = -1
        took = now - self.sent
        if took < 0:  # the clock was set back
            return
        self.round_trip += (took - self.round_trip) / (SMOOTHING if self.round_trip else 1)
        self._count(lost=False)

    def _count(self, *, lost: bool) -> None:
        self.asked = min(self.asked + 1, PINGS)
        self.lost = (self.lost << 1 | lost) & ((1 << PINGS) - 1)


class MeasuredPath(msgspec.Struct, frozen=True):
    """Measurements of a host to a peer (its id) in a network; ``round_trip`` in seconds, None without an answer.

    ``lost`` of the last ``pings`` had no answer.
    """

    peer: str
    network: str
    address: str
    round_trip: float | None
    lost: int
    pings: int

    @property
    def loss(self) -> float:
        """Return which part of the last pings had no answer."""
        return self.lost / self.pings if self.pings else 0.0

    @property
    def badness(self) -> tuple[float, float]:
        """Return what sorts paths from the best to the worst."""
        return self.loss, self.round_trip or 0.0


def worst(paths: Iterable[MeasuredPath]) -> list[MeasuredPath]:
    """Return each peer's worst path, the worst of all first."""
    found: dict[str, MeasuredPath] = {}
    for path in sorted(paths, key=lambda path: path.badness, reverse=True):
        found.setdefault(path.peer, path)
    return list(found.values())


class PackedPath(msgspec.Struct, frozen=True, array_like=True):
    """A measured path as four numbers, for a record that every host gets.

    ``way`` says which network and family it is of, and ``took`` the round trip in microseconds.
    """

    way: Annotated[int, Meta(ge=0)]
    took: Annotated[int, Meta(ge=0, le=3600 * MICRO)] | None
    lost: Annotated[int, Meta(ge=0, le=PINGS)]
    pings: Annotated[int, Meta(ge=0, le=PINGS)]

    def __post_init__(self) -> None:
        """Raise ValueError, which decoding turns into Invalid, if more pings are lost than there were."""
        if self.lost > self.pings:
            raise ValueError("more pings are lost than were sent")

    @classmethod
    def of(cls, path: MeasuredPath, way: int) -> PackedPath:
        """Return a path as numbers."""
        took = None if path.round_trip is None else min(round(path.round_trip * MICRO), 3600 * MICRO)
        return cls(way, took, path.lost, path.pings)

    def unpacked(self, peer: str, network: str, address: str) -> MeasuredPath:
        """Return the path to a peer's address in a network."""
        took = None if self.took is None else self.took / MICRO
        return MeasuredPath(peer, network, address, took, self.lost, self.pings)
