from __future__ import annotations

import pytest

from linkspan.diagnose.trace.kernel_view import Secured


@pytest.mark.parametrize(
    ("since", "keepalive", "proven"),
    [(-1, 25, False), (0, 25, True), (150, 25, True), (206, 25, False), (206, 0, True), (250, 100, True)],
)
def test_a_session_that_has_ended_proves_nothing(since: float, keepalive: int, proven: bool) -> None:
    """With keepalives there would be a new one, if the peer had the key; without, there was no traffic."""
    assert Secured("own", "key", since=since, keepalive=keepalive).proven is proven
