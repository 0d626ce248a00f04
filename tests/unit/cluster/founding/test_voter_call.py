"""Calls of voters, on the loopback device."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from linkspan.cluster.founding import voter_call
from linkspan.cluster.founding.voter_call import MOST_CALLERS, WORD, Ear, call
from support.polling import until


@pytest.fixture
def ear(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ear]:
    """Give an open ear at a free port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(voter_call, "PORT", free.getsockname()[1])
    made = Ear()
    made.open()
    made.open()
    yield made
    made.close()


def heard(ear: Ear) -> tuple[str, ...]:
    """Wait for callers, and return them."""
    found: list[tuple[str, ...]] = [()]

    def any_() -> bool:
        found[0] = ear.callers()
        return bool(found[0])

    until(any_, "a call is heard")
    return found[0]


def test_a_host_hears_from_where_a_voter_calls(ear: Ear) -> None:
    """Once for each round of calls; an address that cannot be reached, or of the other family, keeps nobody back."""
    call("127.0.0.5", ["::1", "255.255.255.255", "127.0.0.1"])
    assert heard(ear) == ("127.0.0.5",)
    assert ear.callers() == ()
    call("203.0.113.9", ["127.0.0.1"])  # no address of this host
    assert ear.callers() == ()


def test_whoever_sends_something_else_or_very_often_is_not_followed_far(ear: Ear) -> None:
    """Other words count for nothing, and of many callers some are tried."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        for word in (b"", b"x", WORD + b"x", WORD[:-1]):
            other.sendto(word, ("127.0.0.1", voter_call.PORT))
    for last in range(10, 30):
        call(f"127.0.0.{last}", ["127.0.0.1"])
    some = heard(ear)
    assert len(some) <= MOST_CALLERS
    assert {*some} <= {f"127.0.0.{last}" for last in range(10, 30)}


def test_a_closed_ear_hears_nothing(ear: Ear) -> None:
    """And leaves the port to others."""
    ear.close()
    call("127.0.0.1", ["127.0.0.1"])
    assert ear.callers() == ()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", voter_call.PORT))
