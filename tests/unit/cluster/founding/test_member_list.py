"""The list of etcd's members: whether the others go on without a host, and how one is taken out while others stop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from linkspan.cluster.founding import member_list
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import Unavailable
from linkspan.core.store_url import etcd_parts
from linkspan.store.etcd_errors import refusal
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_wire import Json, Member

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
    """A silent member says nothing."""

    async def answering(url: str, _seconds: float) -> tuple[Member, ...]:
        (place,) = etcd_parts(url).endpoints
        return told.get(place, ())

    monkeypatch.setattr(member_list, "answering", answering)
    asked = member_list.is_replaced(TrustFiles(tmp_path), (FIRST, SECOND), "h2", "192.0.2.2")
    assert asyncio.run(asked) is replaced


class Answers(Gateway):
    """Etcd at two places: ``told`` has their next answers, each a gRPC code (0: done) and etcd's words for it."""

    def __init__(self, **told: list[tuple[int, str]]) -> None:
        super().__init__(etcd_parts(f"etcd://{FIRST},{SECOND}/x"))
        self.told = {FIRST: told["first"], SECOND: told["second"]}

    async def _ask(self, endpoint: str, _path: str, _body: Json, _token: str, _seconds: float = 0) -> bytes:
        code, why = self.told[endpoint].pop(0)
        answer = b'{"code": %d, "message": "etcdserver: %s"}' % (code, why.encode())
        if code:
            raise refusal(self.url, endpoint, 503, answer)
        return answer


STOPPED, GONE, UNHEALTHY, DONE = (14, "server stopped"), (5, "member not found"), (14, "unhealthy cluster"), (0, "")


@pytest.mark.parametrize("second", [[DONE], [GONE], [UNHEALTHY, DONE], [(14, "leader changed"), GONE]])
def test_a_member_that_stops_keeps_none_from_being_taken_out(
    monkeypatch: pytest.MonkeyPatch, second: list[tuple[int, str]]
) -> None:
    """The other one is asked, which may find that it was done, or need a moment until it leads."""
    monkeypatch.setattr(member_list, "AGAIN", 0)
    answers = Answers(first=[STOPPED, STOPPED], second=[*second])
    asyncio.run(member_list.remove(answers, "1"))
    assert answers.told[SECOND] == []


def test_a_quorum_that_would_be_lost_is_an_error_at_once() -> None:
    """Nobody waits for it."""
    answers = Answers(first=[(9, "re-configuration failed due to not enough started members")], second=[])
    with pytest.raises(Unavailable, match="not enough started members"):
        asyncio.run(member_list.remove(answers, "1"))


def test_a_voters_address_is_told_to_another_member_if_one_stops() -> None:
    """As it is taken out."""
    answers = Answers(first=[STOPPED], second=[DONE])
    asyncio.run(member_list.move(answers, "1", "192.0.2.9:5380"))
    assert answers.told[SECOND] == []
