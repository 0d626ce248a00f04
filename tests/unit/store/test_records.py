"""Records of agents that are a version older or newer, side by side in one cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan import SCHEMA
from linkspan.core.errors import Invalid
from linkspan.core.model import Bandwidth, Endpoint, Host, Lease, Migration, Network, Offer, Underlay
from linkspan.store import records
from linkspan.store.memory import Memory
from linkspan.store.records import T
from support.polling import eventually
from support.records.replicas import Member, network, together


def _fields(value: bytes) -> dict[str, Any]:
    return msgspec.json.decode(value, type=dict[str, Any])


def test_a_record_of_the_next_schema_keeps_its_unknown_fields_at_every_depth() -> None:
    """Read, changed and written by this version: what only the next one knows is there still, and so is its schema."""
    lease = Lease(
        network="demo", host="h1", prefixes=("10.244.1.0/24",), endpoints={"vxlan": Offer({"mac": "1"})}
    )
    newer = _fields(msgspec.json.encode(lease)) | {"schema": SCHEMA + 1, "color": {"red": 1}}
    newer["endpoints"]["vxlan"]["queue"] = 4
    old = msgspec.json.encode(newer)
    changed = msgspec.structs.replace(records.decode(old, Lease), prefixes=("10.244.2.0/24",))
    written = _fields(records.encode(changed, old, SCHEMA))
    assert written == newer | {"prefixes": ["10.244.2.0/24"]}


@pytest.mark.parametrize(
    "value",
    [
        Network(
            name="a", pools=("10.0.0.0/8",), subnet_len={"4": 24}, backend="ipip",
            migration=Migration(backend="vxlan", mtu=1400, number=1),
        ),
        Host(id="h", name="h", underlay=Underlay("eth0", ("192.0.2.1/24",))),
    ],
)  # fmt: skip
def test_nested_values_are_kept_and_what_is_taken_away_goes(value: Network | Host) -> None:
    """A field inside a nested value that stays is kept; a nested value that becomes None takes its own along."""
    name = "migration" if isinstance(value, Network) else "underlay"
    before = _fields(records.encode(value, b"", SCHEMA))
    before[name]["later"] = True
    old = msgspec.json.encode(before)
    assert _fields(records.encode(value, old, SCHEMA))[name]["later"] is True
    gone = msgspec.structs.replace(value, **{name: None})
    assert _fields(records.encode(gone, old, SCHEMA))[name] is None


def test_an_endpoint_with_limits_is_written_over_its_own_record() -> None:
    """Limits have camel case names in JSON, as in CNI; what a newer agent says of them is kept."""
    endpoint = Endpoint(id="c1", ifname="eth0", network="demo", bandwidth=Bandwidth(ingress_rate=8000))
    newer = _fields(records.encode(endpoint, b"", SCHEMA))
    newer["bandwidth"]["latency"] = 25
    assert _fields(records.encode(endpoint, msgspec.json.encode(newer), SCHEMA)) == newer


def test_a_record_of_the_schema_before_is_read_with_defaults() -> None:
    """Fields that it does not have yet have their defaults; so does a record that says no schema."""
    for schema in ({"schema": SCHEMA - 1}, {}):
        old = msgspec.json.encode({"id": "h1", "name": "h1", **schema})
        assert records.decode(old, Host) == Host(id="h1", name="h1")


@pytest.mark.parametrize(
    "value", [b'{"schema": %d, "id": "h1", "name": "h1"}' % (SCHEMA + 2), b"{garbage", b"[1]"]
)
def test_what_means_nothing_to_us_is_refused_with_the_reason(value: bytes) -> None:
    """A schema that is two ahead, and garbage, are Invalid."""
    with pytest.raises(Invalid):
        records.decode(value, Host)


def test_the_cluster_s_schema_is_written_and_never_more_than_we_know() -> None:
    """An agent that knows more writes what all know; one that knows less writes what it knows."""
    host = Host(id="h", name="h")
    assert _fields(records.encode(host, b"", 0))["schema"] == 0
    assert _fields(records.encode(host, b"", SCHEMA + 5))["schema"] == SCHEMA


def test_a_host_that_is_two_versions_ahead_stops_nobody(tmp_path: Path) -> None:
    """Its records are skipped, named and counted; the others claim blocks, none of which is its own."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/23")
        one = Member(memory, tmp_path, "h1")
        await one.start()
        ahead = {"schema": SCHEMA + 2}
        await one.store.transaction(
            {
                "hosts/new": msgspec.json.encode(ahead | {"id": "new", "name": "new"}),
                "leases/demo/new": msgspec.json.encode(ahead | {"whose": "new", "which": ["10.244.0.0/24"]}),
                "blocks/demo/10.244.0.0/24": msgspec.json.encode(ahead | {"whose": "new"}),
            }
        )
        await eventually(lambda: len(one.replica.records) >= 3, "h1 has them")
        lease = await one.leases.claim(net, {})
        assert lease.prefixes == ("10.244.1.0/24",)
        one.hosts.all(), one.leases.all()
        assert one.replica.unreadable == {"hosts/new", "leases/demo/new", "blocks/demo/10.244.0.0/24"}
        await one.stop()

    together(work)


def test_agents_of_two_versions_change_one_record_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer one's addition survives the older one's change of the same record, and both see both changes."""

    async def work() -> None:
        memory = Memory()
        old = Member(memory, tmp_path, "h1")
        await old.start()
        newer = {"schema": SCHEMA + 1, "id": "h2", "name": "h2", "gpu": "yes"}
        await old.store.transaction({"hosts/h2": msgspec.json.encode(newer)})
        await eventually(lambda: old.hosts.record("h2"), "h1 knows h2")
        host = old.hosts.record("h2")
        assert host is not None
        drained = msgspec.structs.replace(host, settings={"drained": "1"})
        await old.replica.write({"hosts/h2": drained})
        told = _fields(memory.entries["hosts/h2"][0] or b"")
        assert (told["gpu"], told["settings"], told["schema"]) == ("yes", {"drained": "1"}, SCHEMA + 1)
        await old.stop()

    together(work)


def test_a_value_is_decoded_once_for_each_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again, a record that did not change costs nothing; a convergence pays for what changed."""

    async def work() -> None:
        memory = Memory()
        member = Member(memory, tmp_path, "h1")
        await member.start()
        for number in range(10):
            await member.replica.write({f"hosts/p{number}": Host(id=f"p{number}", name=f"p{number}")})
        member.hosts.all()
        asked: list[bytes] = []
        decode = records.decode

        def counted(value: bytes, type_: type[T]) -> T:
            asked.append(value)
            return decode(value, type_)

        monkeypatch.setattr(records, "decode", counted)
        await member.replica.write({"hosts/p3": Host(id="p3", name="other")})
        assert member.hosts.all()["p3"].name == "other"
        assert len(asked) == 1
        await asyncio.gather(member.stop())

    together(work)
