"""A host keeps its id, whatever becomes of the file that has it, and its cluster while it has something there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from linkspan.agent.arrival import instance, known_cluster
from linkspan.agent.host_identity import host_id, keep
from linkspan.core.config import Config
from linkspan.core.errors import Unavailable
from linkspan.store.factory import open_store, own_cluster
from linkspan.store.snapshot import SNAPSHOT

SPOILT = {"cut off": b"h", "empty": b"", "blank": b"\n", "damaged": b"\xff\x00", "no name": b"a/b\n"}


def snapshot(folder: Path, host: str) -> None:
    """Write what a host's last agent knew."""
    text = msgspec.json.encode({"cluster": "c1", "records": [], "host": host})
    (folder / "replica.json").write_bytes(text)


def ran_before(folder: Path) -> None:
    """Leave the mark that an agent ran here."""
    (folder / "journal.witness").write_text("{}")


def settled(folder: Path, given: str, *, shared: bool) -> tuple[str, str]:
    """Return who a host is, written down as an agent does that starts."""
    found = host_id(folder, given, shared=shared)
    if not given:
        keep(folder, found[0])
    return found


def test_a_new_host_gets_an_id_that_stays(tmp_path: Path) -> None:
    """It is created once, without an event, and only root may read the file."""
    first, told = settled(tmp_path, "", shared=True)
    assert (len(first), told) == (16, "")
    assert (tmp_path / "host-id").stat().st_mode & 0o777 == 0o600
    assert settled(tmp_path, "", shared=True) == (first, "")


def test_an_id_that_is_given_wins(tmp_path: Path) -> None:
    """It is written nowhere; that the host was another one before is reported."""
    assert settled(tmp_path, "h1", shared=True) == ("h1", "")
    assert not (tmp_path / "host-id").exists()
    snapshot(tmp_path, "h2")
    assert settled(tmp_path, "h1", shared=True) == ("h1", "this host's id was h2 in the cluster, and is h1 from now on")


@pytest.mark.parametrize("content", [*SPOILT.values(), None], ids=[*SPOILT, "missing"])
def test_a_lost_id_is_the_last_agent_s(tmp_path: Path, content: bytes | None) -> None:
    """The snapshot has it; the file is written again, with one event."""
    file = tmp_path / "host-id"
    if content is not None:
        file.write_bytes(content)
    snapshot(tmp_path, "h7")
    found, told = settled(tmp_path, "", shared=True)
    assert found == "h7"
    assert "this host keeps the id h7" in told
    assert settled(tmp_path, "", shared=True) == ("h7", "")


def stored(folder: Path, host: str) -> None:
    """Put a host's record into the store that a host has for itself."""

    async def put() -> None:
        store = open_store("", folder)
        await store.transaction({f"hosts/{host}": b"{}"})
        await store.close()

    asyncio.run(put())


def test_a_lost_id_is_that_of_the_host_s_own_store(tmp_path: Path) -> None:
    """Without a snapshot, if that store has only this host; a store with two hosts cannot decide."""
    (tmp_path / "host-id").write_bytes(b"")
    stored(tmp_path, "h5")
    assert settled(tmp_path, "", shared=True)[0] == "h5"
    stored(tmp_path, "h6")
    (tmp_path / "host-id").write_bytes(b"")
    with pytest.raises(Unavailable):
        settled(tmp_path, "", shared=True)


@pytest.mark.parametrize("content", [*list(SPOILT.values())[1:], None], ids=[*list(SPOILT)[1:], "missing"])
def test_a_host_that_shares_a_store_does_not_become_another_one(tmp_path: Path, content: bytes | None) -> None:
    """If nothing has its id, its agent does not start, and the error's fix works."""
    file = tmp_path / "host-id"
    if content is not None:
        file.write_bytes(content)
    ran_before(tmp_path)
    with pytest.raises(Unavailable, match=r"nothing else in .* has this host's id") as refused:
        settled(tmp_path, "", shared=True)
    assert str(file) in refused.value.message
    assert f"echo ID > {file}" in refused.value.hint
    file.write_text("h3\n")
    assert settled(tmp_path, "", shared=True) == ("h3", "")


def test_a_host_that_is_alone_begins_again(tmp_path: Path) -> None:
    """No other host and no record knows the old id, so a new one costs nothing; it is reported."""
    (tmp_path / "host-id").write_bytes(b"")
    found, told = settled(tmp_path, "", shared=False)
    assert len(found) == 16
    assert f"this host's id is {found} from now on" in told


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    """No traceback."""
    (tmp_path / "host-id").mkdir()
    with pytest.raises(Unavailable, match="host-id: is a directory") as refused:
        settled(tmp_path, "", shared=False)
    assert "move away what is in its place" in refused.value.hint


@pytest.mark.parametrize(
    ("records", "joins"),
    [
        ("[]", True),
        ('[{"key":"hosts/h5","value":"e30=","revision":1}]', True),
        ('[{"key":"networks/demo","value":"e30=","revision":1}]', False),
        ('[{"key":"networks/demo","value":"e30=","revision":"x"}]', False),
    ],
    ids=["empty", "no network", "network", "damaged"],
)
def test_a_host_that_was_alone_joins_another_cluster_only_without_a_network(
    tmp_path: Path, records: str, joins: bool
) -> None:
    """With damaged records it may have had one, whose containers the other cluster would not know."""
    stored(tmp_path, "h5")
    cluster = own_cluster(tmp_path)
    (tmp_path / SNAPSHOT).write_text(f'{{"cluster":"{cluster}","host":"h5","records":{records}}}')
    config = Config(state_dir=str(tmp_path), store="etcd://192.0.2.1:2379/c")
    assert cluster
    assert known_cluster(config)[0] == ("" if joins else cluster)


def test_an_id_is_not_written_down_before_the_agent_starts(tmp_path: Path) -> None:
    """A start may be refused: nothing of it is left."""
    host_id(tmp_path, "", shared=True)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_the_machine_is_another_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state folder has the same path, device and inode; an agent's restart in one boot changes nothing."""
    found = []
    for boot in ("original", "original", "copy"):
        monkeypatch.setenv("LINKSPAN_BOOT_ID", boot)
        found.append(instance(Config(state_dir=str(tmp_path)), "web1"))
    assert found[0] == found[1] != found[2]
