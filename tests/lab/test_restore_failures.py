"""Restores and snapshots that fail or are killed: one cluster bears all of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.lab.bare_runs import BareRun
from support.lab.restores import endpoints, founded, restore, settled, snapshot
from support.polling import until


@pytest.fixture(scope="module")
def bare() -> Iterator[BareRun]:
    """Give three bare hosts; the first is the voter of the second, with a network and a container on each."""
    with founded() as found:
        yield found


@pytest.mark.parametrize(
    "step", ["etcd.restoring/etcd/data/member/wal", "etcd.restoring/cluster/root.pem", "etcd.restoring/swapping",
             "+before", "+gone"],
)  # fmt: skip
def test_a_restore_that_was_killed_can_be_repeated(bare: BareRun, tmp_path: Path, step: str) -> None:
    """Etcd has one of the two data folders at every moment, whatever was done until then, and no data are deleted."""
    file = snapshot(bare, tmp_path)
    bare.run("attach", "h2", "c3")
    state = bare.folder / "h1" / "state"
    first = (state / "etcd/data/member/snap/db").stat().st_ino
    earlier = {*state.glob("etcd/data.before-*")}

    def kept_before() -> bool:
        return {*state.glob("etcd/data.before-*")} > earlier

    reached: dict[str, Callable[[], bool]] = {
        "+before": kept_before,
        "+gone": lambda: kept_before() and not (state / "etcd.restoring").exists(),
    }
    bare.killed("h1", f"cluster restore {file}", reached.get(step, (state / step).exists))
    until(lambda: not (state / "etcd.restoring").exists(), "the next agent removes what was left")
    settled(bare, "h1", "h2")
    told = restore(bare, file)
    settled(bare, "h1", "h2")
    assert told["join_again"] == []
    assert not (state / "etcd.restoring").exists()
    kept = [one.stat().st_ino for one in state.glob("etcd/data.before-*/member/snap/db")]
    assert first in kept
    until(lambda: sorted(endpoints(bare, "h1")) == ["c1", "c2", "c3"], "h2 has put c3 again")
    until(lambda: bare.pings("c1", bare.address("c3")), "c1 reaches c3")
    bare.run("detach", "c3")


def test_a_snapshot_that_is_not_whole_or_not_ours_changes_nothing(bare: BareRun, tmp_path: Path) -> None:
    """It is refused in words, while etcd goes on."""
    file = snapshot(bare, tmp_path)
    earlier = {*bare.folder.glob("*/state/etcd/data.before-*")}
    whole = file.read_bytes()
    (pid,) = bare.own_etcd()
    damaged = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for content, why in (
        (whole[: len(whole) // 2 + 7], "cut short"), (whole[:-32], "cut short"), (b"", "cut short"),
        (whole[: len(whole) - 4096], "damaged"), (damaged, "damaged"),
    ):  # fmt: skip
        file.write_bytes(content)
        assert why in bare.refused("h1", f"cluster restore {file}"), (len(content), why)
    assert "no such file" in bare.refused("h1", f"cluster restore {tmp_path}/none")
    other = BareRun()
    try:
        other.up(1)
        other.init()
        snapshot(other, tmp_path)
        assert "this host belongs to" in bare.refused("h1", f"cluster restore {file}")
    finally:
        other.run("down")
    assert not (bare.folder / "h1" / "state" / "etcd.restoring").exists()
    file.write_bytes(whole)
    assert "restore on its voter" in bare.refused("h2", f"cluster restore {file}")
    assert "only a voter" in bare.refused("h2", f"cluster snapshot {file}")
    assert "its quorum is not lost" in bare.refused("h1", "cluster recover")
    assert bare.own_etcd() == [pid]
    assert {*bare.folder.glob("*/state/etcd/data.before-*")} == earlier


def test_a_snapshot_that_the_disk_does_not_take_leaves_nothing(bare: BareRun, tmp_path: Path) -> None:
    """An earlier one under the name stays."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=True)
    try:
        (disk / "snapshot.db").write_text("earlier")
        said = bare.refused("h1", f"cluster snapshot {disk}/snapshot.db")
        assert "no space left on device" in said
        assert f"free some space on the disk at {disk}" in said
        assert [one.read_text() for one in disk.iterdir()] == ["earlier"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert "no such file" in bare.refused("h1", f"cluster snapshot {tmp_path}/none/snapshot.db")
