"""Round trip and loss of a path."""

from __future__ import annotations

import pytest

from linkspan.cluster.path_quality import PATIENCE, PINGS, MeasuredPath, PathQuality, worst


def pinged(*answers: float | None) -> PathQuality:
    """Return the quality after pings with these round trips (None: no answer), one every two seconds."""
    quality = PathQuality()
    for number, took in enumerate(answers):
        quality.ask(number, 2.0 * number)
        if took is not None:
            quality.heard(number, 2.0 * number + took)
    quality.ask(len(answers), 2.0 * len(answers))
    return quality


def test_the_round_trip_follows_slowly() -> None:
    """One late answer changes it by an eighth."""
    assert pinged(0.008).round_trip == pytest.approx(0.008)
    assert pinged(0.008, 0.016).round_trip == pytest.approx(0.009)


def test_pings_without_an_answer_are_lost() -> None:
    """The one under way does not count yet."""
    quality = pinged(0.001, None, 0.001, None)
    assert (quality.asked, quality.loss) == (4, 0.5)


def test_only_the_last_pings_count() -> None:
    """A loss of long ago is forgotten."""
    assert pinged(None, *[0.001] * PINGS).loss == 0
    assert pinged(*[0.001] * PINGS, None).loss == pytest.approx(1 / PINGS)


def test_an_answer_to_an_earlier_ping_says_nothing_of_this_one() -> None:
    """It would be a round trip that is too short."""
    quality = PathQuality()
    quality.ask(1, 0.0)
    quality.ask(2, 2.0)
    quality.heard(1, 2.1)
    assert (quality.round_trip, quality.loss) == (0, 1)
    quality.heard(2, 2.2)
    assert quality.round_trip == pytest.approx(0.2)


def test_a_ping_that_had_no_time_is_not_lost() -> None:
    """A trace pings a silent peer once more, at any moment."""
    quality = PathQuality()
    quality.ask(1, 0.0)
    quality.ask(2, PATIENCE / 2)
    quality.heard(2, PATIENCE / 2 + 0.1)
    assert (quality.asked, quality.loss) == (1, 0)


def test_a_clock_that_is_set_back_measures_nothing() -> None:
    """The sender's time is later than the answer's."""
    quality = PathQuality()
    quality.ask(1, 100.0)
    quality.heard(1, 40.0)
    assert quality.asked == 0


def test_each_peer_has_its_worst_path() -> None:
    """Loss outranks the round trip, and the worst peer is first."""
    paths = [
        MeasuredPath("a", "demo", "10.0.0.1", 0.5, 0, 32),
        MeasuredPath("a", "web", "10.1.0.1", 0.1, 3, 32),
        MeasuredPath("b", "demo", "10.0.1.1", None, 32, 32),
        MeasuredPath("b", "web", "10.1.1.1", 0.1, 0, 32),
    ]
    assert [(one.peer, one.network) for one in worst(paths)] == [("b", "demo"), ("a", "web")]
