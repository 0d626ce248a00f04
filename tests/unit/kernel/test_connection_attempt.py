"""Attempts to connect: what silence means for datagrams."""

from __future__ import annotations

import socket
import threading

import pytest

from linkspan.kernel.probe import connection_attempt


def test_silence_to_datagrams_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel limits refusals, so that a flow that is refused may look like one to a silent server."""
    monkeypatch.setattr(connection_attempt, "SILENCE", 0.01)
    way, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with way, other:
        assert connection_attempt.heard(way) is None


def test_a_later_datagram_may_be_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones may be lost."""
    monkeypatch.setattr(connection_attempt, "SILENCE", 5)
    way, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with way, other:
        threading.Thread(target=lambda: other.recv(1) == b"" and other.send(b"x")).start()
        assert connection_attempt.heard(way) is True
