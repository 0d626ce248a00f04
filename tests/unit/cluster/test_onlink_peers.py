"""Neighbours on the link: one silence means nothing, and a lost neighbour differs from one that never answered."""

from __future__ import annotations

import pytest

from linkspan.cluster.onlink_peers import EVERY, SOON, Heard
from linkspan.core.host_view import Standing


@pytest.mark.parametrize(
    ("answers", "standing"),
    [
        ([True], "answers"),
        ([False], "silent"),
        ([False, True], "answers"),
        ([False, False, True], "answers"),
        ([True, False], "answers"),
        ([True, False, True, False], "answers"),
        ([True, False, False], "lost"),
        ([True, False, False, True], "lost"),
        ([True, False, False, True, False, True], "lost"),
        ([True, False, False, True, True], "answers"),
    ],
)
def test_a_running_path_changes_at_the_second_surprise_in_a_row(
    answers: list[bool], standing: Standing
) -> None:
    """In both directions; if no path is in use yet, the first answer counts."""
    heard = Heard()
    for answered in answers:
        heard.take(answered, 0.0)
    assert heard.standing == standing


def test_a_surprise_is_looked_at_soon_and_a_long_silence_ever_more_seldom() -> None:
    """A neighbour that answers is asked every minute; no silent one is asked more often than that in the end."""
    heard = Heard()
    heard.take(True, 0.0)
    assert heard.due == EVERY
    heard.take(False, 100.0)
    assert heard.due == 100.0 + SOON
    heard.take(False, 102.0)
    waits = []
    for _ in range(8):
        heard.take(False, 0.0)
        waits.append(heard.due)
    assert waits == sorted(waits)
    assert waits[-1] == EVERY
