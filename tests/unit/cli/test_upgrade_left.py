"""Leftovers of `linkspan upgrade`: what it renews, and what it says is left, is only what the host did not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan import __version__
from linkspan.cli.upgrade import install, left, of_etcd, others
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.core.errors import Invalid
from linkspan.store.snapshot import SNAPSHOT, Remembered


def status(pid: int = 7, version: str = __version__, **more: Any) -> dict[str, Any]:
    """Return an agent's status."""
    return {"agent": {"pid": pid, "version": version, "started": float(pid)}, "store": {"ok": True}, **more}


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (status(1, "0.1.0"), None, ["does not answer"]),
        (status(1, "0.1.0"), status(1, "0.1.0"), ["has not been restarted: version 0.1.0"]),
        (status(1, "0.1.0"), status(2, "0.1.0"), ["is version 0.1.0, and this program is"]),
        (status(1), status(2, waiting="for the store"), ["waits: for the store"]),
        (status(1), status(2) | {"store": {"ok": False}}, ["the store does not answer"]),
        (status(1), status(2, drift=["Route x: no such device"]), ["drift: Route x"]),
        (status(1, drift=["old"]), status(2, drift=["old"]), []),
        (status(1), status(2, unreachable=[{"network": "demo", "host": "h2", "why": "silent"}]), ["demo, h2, silent"]),
        (status(1, "0.1.0"), status(2), []),
    ],
)
def test_only_new_problems_are_left(before: dict[str, Any], now: dict[str, Any] | None, words: list[str]) -> None:
    """An agent that is not the new one is a problem, too."""
    found = left(before, now)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


@pytest.mark.parametrize("name", ["linkspan.tar.gz", "linkspan.deb"])
def test_another_file_is_refused(tmp_path: Path, name: str) -> None:
    """A file that is no package, or is called one, changes nothing."""
    file = tmp_path / name
    file.write_bytes(b"no package")
    with pytest.raises(Invalid, match=name):
        install(file)


@pytest.mark.parametrize("by_systemd", [True, False], ids=["systemd", "helper"])
def test_a_voters_etcd_is_renewed_too(
    tmp_path: Path, by_systemd: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its unit is written again and it is restarted; without systemd a note says what is left to do."""
    monkeypatch.setattr("linkspan.cluster.founding.etcd_service.program", lambda: "/opt/linkspan/bin/etcd")
    assert of_etcd(tmp_path) == []
    TrustFiles(tmp_path).keep_voter(Voter("192.0.2.1", by_systemd))
    (tmp_path / SNAPSHOT).write_bytes(msgspec.json.encode(Remembered(host="h1")))
    files = of_etcd(tmp_path)
    paths = [file.path for file in files]
    if by_systemd:
        assert b"ExecStart=/opt/linkspan/bin/etcd --name voter-h1 " in files[-1].content
        assert others(["/etc/systemd/system/linkspan.service", *paths]) == ["linkspan-etcd.service"]
        assert capsys.readouterr().err == ""
    else:
        assert paths == []
        assert f"--data-dir is {tmp_path}/etcd/data" in capsys.readouterr().err
