"""etcd's own tools: a snapshot that linkspan took is restored by each of them, and their errors are told."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from linkspan.cluster.founding import etcd_tools
from linkspan.cluster.founding.etcd_tools import BUMP, Restorer
from linkspan.cluster.founding.snapshots import check, take
from linkspan.core.errors import NotFound, Unavailable
from linkspan.core.store_url import etcd_parts
from linkspan.store.etcd_gateway import Gateway
from support.store.etcd_members import Members

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def etcd() -> Iterator[Members]:
    """Give an etcd with two records."""
    with Members.started(1) as started:
        started.control("put", "/c/a", "1")
        started.control("put", "/c/b", "2" * 100_000)
        yield started


async def taken(etcd: Members, file: Path) -> Path:
    """Take a snapshot."""
    gateway = Gateway(etcd_parts(etcd.url("/c")))
    try:
        with etcd.inside():
            found = await take(gateway, file)
    finally:
        await gateway.close()
    assert found.bytes == file.stat().st_size == check(file)
    return file


def only(name: str) -> Callable[[str], str]:
    """Return what finds no other tool than this one."""
    return lambda wanted: (shutil.which(name) or "") if wanted == name else ""


def revision(file: Path) -> int:
    """Return the revision of a snapshot, or of a database, as etcdutl sees it."""
    argv = ["etcdutl", "snapshot", "status", str(file), "-w", "json"]
    done = subprocess.run(argv, capture_output=True, check=True)
    return int(json.loads(done.stdout)["revision"])


@pytest.mark.parametrize("name", ["etcdutl", "etcdctl"])
async def test_each_tool_restores_beyond_all_revisions(
    etcd: Members, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Etcd's own check accepts the snapshot; a database without a checksum is restored only if it is meant."""
    monkeypatch.setattr(etcd_tools, "tool", only(name))
    file = await taken(etcd, tmp_path / "snapshot.db")
    restorer = Restorer()
    assert (restorer.words[0], restorer.bump) == (shutil.which(name), BUMP)
    peers = "https://192.0.2.1:5380"
    restorer.restore(file, tmp_path / "data", "voter-a", peers, "token")
    database = tmp_path / "data/member/snap/db"
    assert revision(file) < BUMP <= revision(database)
    with pytest.raises(Unavailable, match=r"hash|integrity"):
        restorer.restore(database, tmp_path / "more", "voter-a", peers, "token")
    restorer.restore(database, tmp_path / "again", "voter-a", peers, "token", checked=False)
    assert revision(tmp_path / "again/member/snap/db") >= 2 * BUMP
    with pytest.raises(Unavailable, match="none"):
        restorer.restore(tmp_path / "none", tmp_path / "third", "voter-a", peers, "token")


def test_without_a_tool_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is changed then."""
    monkeypatch.setattr(etcd_tools, "tool", lambda _name: "")
    with pytest.raises(NotFound, match="neither etcdutl nor etcdctl") as error:
        Restorer()
    assert "etcd-client" in error.value.hint
    with pytest.raises(NotFound, match="etcdctl is not installed"):
        etcd_tools.reset_root("127.0.0.1:1", tmp_path, tmp_path, tmp_path, "x")
