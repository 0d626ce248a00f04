"""Elements with an end of their own: what is sent; tests/netns has what the kernel makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from linkspan.core.addresses import prefix
from linkspan.kernel.drivers import timed_elements
from linkspan.kernel.drivers.timed_elements import Timed
from linkspan.kernel.io.netlink import Message


def test_an_address_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the last of its ends: to delete it twice would be an error, and nothing of the transaction would count.

    The owner of a name may give an address several times, with a TTL of its own each time.
    """
    sent: list[Message] = []

    def transact(_netlink: Any, batch: Sequence[Message]) -> None:
        sent.extend(batch)

    monkeypatch.setattr(timed_elements, "transact", transact)
    at, other = prefix("192.0.2.7"), prefix("192.0.2.8")
    timed_elements.put(cast("Any", None), "t", [Timed("s", at, 60), Timed("s", other, 60), Timed("s", at, 900)])
    assert [one.body.count(at.packed) for one in sent] == [1, 1, 1]
    ends = [(seconds * 1000).to_bytes(8, "big") for seconds in (60, 900)]
    assert [[one.body.count(end) for end in ends] for one in sent] == [[1, 1], [0, 0], [1, 1]]
