"""Whether the other voters go on without a host."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from linkspan.cluster.founding import member_list
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.store_url import etcd_parts
from linkspan.store.etcd_wire import Member

H1, H2, H3 = (Member(str(n), f"linkspan-h{n}", (f"https://192.0.2.{n}:5380",)) for n in (1, 2, 3))
FIRST, SECOND = "192.0.2.1:5379", "192.0.2.3:5379"


@pytest.mark.parametrize(
    ("told", "replaced"),
    [
        ({}, False),
        ({FIRST: (H1, H2, H3)}, False),
        ({FIRST: (H1,)}, True),
        ({FIRST: (H1,), SECOND: (H1, H2, H3)}, True),  # h1 was restored, and h3 is still of the former cluster
        ({FIRST: (H1, Member("2", "", H2.peers))}, False),  # it was added again, and has not started
    ],
)
def test_a_quorum_without_this_host_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Mapping[str, tuple[Member, ...]], replaced: bool
) -> None:
    """Whoever does not answer says nothing."""

    async def answering(url: str, _seconds: float) -> tuple[Member, ...]:
        (place,) = etcd_parts(url).endpoints
        return told.get(place, ())

    monkeypatch.setattr(member_list, "answering", answering)
    asked = member_list.is_replaced(TrustFiles(tmp_path), (FIRST, SECOND), "h2", "192.0.2.2")
    assert asyncio.run(asked) is replaced
