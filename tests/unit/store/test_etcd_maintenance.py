"""Answers of etcd's members about themselves, put together: by release, by address, and with what is not theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeVar

import msgspec
import pytest

from linkspan.core.errors import Unavailable
from linkspan.core.store_url import etcd_parts
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_maintenance import Maintenance
from linkspan.store.etcd_status import NOSPACE, UNSEEN, EtcdStatus
from linkspan.store.etcd_wire import Json, decode

T = TypeVar("T")


class Canned(Gateway):
    """A gateway that answers what a test wants: members by id with their URLs, and statuses and metrics by address."""

    def __init__(
        self, url: str, members: Mapping[str, str], statuses: Mapping[str, Json], metrics: Mapping[str, bytes]
    ) -> None:
        super().__init__(etcd_parts(url))
        self._members = [{"ID": id_, "name": f"m{id_}", "clientURLs": [where]} for id_, where in members.items()]
        self._statuses = statuses
        self._metrics = metrics
        self.asked: list[str] = []

    async def ask(self, path: str, body: Json, kind: type[T], seconds: float = 0) -> T:
        """Return who the members are."""
        return decode(msgspec.json.encode({"members": self._members}), kind)

    async def at(self, endpoint: str, path: str, body: Json, seconds: float) -> bytes:
        """Return a member's own answer."""
        self.asked.append(f"{endpoint}{path}")
        if endpoint not in self._statuses:
            raise Unavailable(f"etcd {endpoint}: cannot be reached: connection refused")
        return self._metrics.get(endpoint, b"") if path == "/metrics" else msgspec.json.encode(self._statuses[endpoint])


def status(id_: str, **more: object) -> Json:
    """Return a member's status as the gateway has it: 64-bit numbers are texts."""
    header = {"member_id": id_, "revision": "7"}
    return {"header": header, "version": "3.5.16", "dbSize": "4096", "dbSizeInUse": "1024", "leader": "1", **more}


def seen(gateway: Canned) -> EtcdStatus:
    """Return what is made of it."""
    return asyncio.run(Maintenance(gateway, "upkeep/etcd").status(0))


@pytest.mark.parametrize(
    ("told", "metrics", "quota"),
    [
        ({"dbSizeQuota": "9000"}, b"", 9000),
        ({}, b"# TYPE x gauge\netcd_server_quota_backend_bytes 2.147483648e+09\nx 1\n", 2147483648),
        ({}, b"etcd_server_quota_backend_bytes -1\n", -1),
        ({}, b"etcd_server_quota_backend_bytes NaN\n", 0),
        ({}, b"<html>", 0),
    ],
)
def test_the_quota_is_in_the_status_or_in_the_metrics(told: Json, metrics: bytes, quota: int) -> None:
    """Etcd 3.6 has it in its status; of an older one the metrics are read; what is no number is not known."""
    gateway = Canned("etcd://a", {"1": "http://a:2379"}, {"a:2379": status("1", **told)}, {"a:2379": metrics})
    (one,) = seen(gateway).members
    assert (one.name, one.endpoint, one.size, one.in_use, one.leader) == ("m1", "a:2379", 4096, 1024, True)
    assert one.quota == quota
    assert ("a:2379/metrics" in gateway.asked) is ("dbSizeQuota" not in told)


def test_a_quota_is_not_asked_for_again_before_its_time() -> None:
    """The metrics are large, and change with a restart only."""
    gateway = Canned("etcd://a", {"1": "http://a:2379"}, {"a:2379": status("1")}, {})
    etcd = Maintenance(gateway, "upkeep/etcd")

    async def work() -> None:
        for age in (60.0, 60.0, 0.0):
            await etcd.status(age)

    asyncio.run(work())
    assert gateway.asked.count("a:2379/metrics") == 2


def test_members_that_the_url_does_not_name_are_asked_where_they_advertise() -> None:
    """One behind an address that means its own machine is not asked; one that refuses says so."""
    members = {"1": "http://a:2379", "2": "http://b:2379", "3": "http://127.0.0.1:2379", "4": "http://d:2379"}
    statuses = {"a:2379": status("1"), "b:2379": status("2"), "127.0.0.1:2379": status("3")}
    found = seen(Canned("etcd://a", members, statuses, {}))
    assert [(one.name, one.endpoint) for one in found.members] == [
        ("m1", "a:2379"),
        ("m2", "b:2379"),
        ("m3", ""),
        ("m4", ""),
    ]
    assert found.members[2].problem == UNSEEN
    assert "connection refused" in found.members[3].problem


def test_what_answers_at_an_address_may_belong_to_another_etcd() -> None:
    """Neither its sizes nor its alarms count."""
    statuses = {
        "a:2379": status("1", errors=["memberID:1 alarm:NOSPACE "]),
        "b:2379": status("9", errors=["memberID:9 alarm:CORRUPT "]),
    }
    found = seen(Canned("etcd://a", {"1": "http://a:2379", "2": "http://b:2379"}, statuses, {}))
    assert found.alarms == (("1", NOSPACE),)
    assert [one.problem for one in found.members] == ["", "another etcd answers at b:2379"]
