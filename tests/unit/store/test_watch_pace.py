"""Pace at which a watch is read while changes come without a pause."""

from __future__ import annotations

import itertools

from linkspan.store.etcd_watch import PACE, PLENTY, Pace


def read(every: float, seconds: float) -> list[float]:
    """Return when a watch is read to which a change comes each ``every`` seconds, as changes are read."""
    pace, now, times = Pace(), 0.0, list[float]()
    while now < seconds:
        times.append(now)
        free = now + pace.rest(now, 100)
        now = max(free, now + every)
    return times


def test_single_changes_are_read_at_once() -> None:
    """A host that joins writes a few records one after the other, and waits for nobody."""
    pace = Pace()
    assert [pace.rest(0.001 * number, 100) for number in range(PACE - 1)] == [0.0] * (PACE - 1)


def test_changes_without_end_are_read_together() -> None:
    """However many there are, a second has PACE readings in the long run, and a change waits a tenth of a second."""
    times = read(0.001, 20)
    assert len(times) <= 21 * PACE + 1
    assert max(later - one for one, later in itertools.pairwise(times)) <= 1 / PACE + 0.001


def test_a_pause_gives_the_next_changes_way_again() -> None:
    """After a quiet second they are read at once."""
    pace = Pace()
    while not pace.rest(0.0, 100):
        pass
    assert pace.rest(5.0, 100) == 0.0


def test_a_watch_that_is_behind_does_not_rest() -> None:
    """A reading brings only what fits the buffer: with rests between them it would never catch up."""
    pace = Pace()
    while not pace.rest(0.0, 100):
        pass
    assert pace.rest(0.0, PLENTY) == 0.0
    assert pace.rest(0.0, PLENTY - 1) > 0.0
