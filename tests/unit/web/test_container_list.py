"""Lists of containers in parts."""

from __future__ import annotations

import pytest

from linkspan.web import container_list
from linkspan.web.container_list import ContainerList, Wanted
from support.web.answers import endpoint


def test_a_part_of_a_list_is_searched_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, address or label, of a host and a network; each word of a search must be there."""
    monkeypatch.setattr(container_list, "PAGE", 2)
    every = ContainerList(
        [endpoint(f"web{n}", "h1") for n in range(5)] + [endpoint("db", "h2", labels={"tier": "data"})]
    )
    first = every.part(Wanted(search="WEB", host="h1"))
    assert (first["total"], first["pages"], list(first["containers"])) == (5, 3, ["web0/eth0", "web1/eth0"])
    assert list(every.part(Wanted(host="h1", page=2))["containers"]) == ["web4/eth0"]
    assert list(every.part(Wanted(search="tier=data DB"))["containers"]) == ["db/eth0"]
    assert every.part(Wanted(search="web data"))["total"] == 0
    assert every.part(Wanted(page=99))["containers"] == {}
    assert every.part(Wanted(network="other"))["total"] == 0
