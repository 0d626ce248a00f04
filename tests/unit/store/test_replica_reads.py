"""Reading the replica: each record is decoded once, and what begins with a network or host is found by that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from linkspan.core.model import Host, Network
from linkspan.store import validation
from linkspan.store.memory import Memory
from support.records.replicas import Member, network, together


def test_each_record_is_decoded_once_for_each_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spoilt one too, and what it was before it was spoilt: every listing reads all."""

    async def work() -> None:
        decoded: list[str] = []
        decode = validation.decode

        def noted(key: str, *words: Any) -> Any:
            decoded.append(key)
            return decode(key, *words)

        monkeypatch.setattr(validation, "decode", noted)
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        await one.replica.write({"networks/demo": network(), "hosts/h1": Host(id="h1", name="h1")})
        await one.replica.write({"networks/demo": b"{"})
        decoded.clear()
        for _ in range(3):
            assert one.replica.read("networks/", Network) == {"networks/demo": network()}
            assert len(one.replica.read("hosts/", Host)) == 1
        assert sorted(decoded) == ["hosts/h1", "networks/demo", "networks/demo"]
        assert one.replica.unreadable == {"networks/demo"}
        await one.replica.write({"networks/demo": network(mtu=1400)})
        assert one.replica.read("networks/", Network)["networks/demo"].mtu == 1400
        assert not one.replica.unreadable
        await one.replica.stop()

    together(work)


def test_records_are_found_by_the_beginning_of_their_keys(tmp_path: Path) -> None:
    """The prefix may be a kind, a network or host of it, or a part of a word."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        keys = ["hosts/h1", "hosts/h11", "leases/demo/h1", "leases/demo/h2", "leases/other/h1", "blocks/a/10.0.0.0/24"]
        await one.replica.write(dict.fromkeys(keys, b"{}"))
        await one.replica.write({}, deletes=["leases/demo/h2"])
        prefixes = {key[:length] for key in keys for length in range(key.index("/") + 1, len(key) + 1)}
        known = set(one.replica.records)
        assert known == {*keys, "gone/leases/demo/h2"} - {"leases/demo/h2"}
        for prefix in (*prefixes, "gone/", "gone/leases/", "gone/leases/demo/h2", "none/", "hosts/h3/"):
            assert set(one.replica.under(prefix)) == {key for key in known if key.startswith(prefix)}, prefix
        await one.replica.stop()

    together(work)
