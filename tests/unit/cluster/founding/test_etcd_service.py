"""linkspan's own etcd as a process: where it is found, its command line and its unit."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from linkspan.cluster.founding import etcd_service
from linkspan.cluster.founding.etcd_service import (
    UNIT_FOLDER,
    UNIT_NAME,
    EtcdService,
    program,
    sysusers,
    unit,
)
from linkspan.cluster.founding.trust_files import Voter
from linkspan.core.errors import NotFound, Unavailable
from linkspan.kernel.io.durable_files import temporary
from support.polling import eventually


def test_a_packages_own_etcd_goes_before_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is beside the Python that runs linkspan; without any the error says what to install."""
    elsewhere = tmp_path / "path" / "etcd"
    for file in (elsewhere, tmp_path / "prefix" / "bin" / "etcd"):
        file.parent.mkdir(parents=True)
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("PATH", str(elsewhere.parent))
    assert program() == str(tmp_path / "prefix" / "bin" / "etcd")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert program() == str(elsewhere)
    elsewhere.unlink()
    with pytest.raises(NotFound, match="etcd is not installed"):
        program()


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_etcd_listens_at_the_voters_address_alone(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every port needs a certificate, and nobody listens on another address."""
    monkeypatch.setattr("linkspan.cluster.founding.etcd_service.program", lambda: "/usr/bin/etcd")
    service = EtcdService(tmp_path, "h1", Voter(address))
    words = service.argv()
    service.close()
    options = dict(itertools.pairwise(words))
    host = f"[{address}]" if ":" in address else address
    assert options["--listen-client-urls"] == f"https://{host}:5379"
    assert options["--listen-peer-urls"] == f"https://{host}:5380"
    assert {"--client-cert-auth", "--peer-client-cert-auth", "--client-crl-file"} <= set(words)


def test_systemd_accepts_the_unit_and_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs as a user of its own, and starts again whenever it ends."""
    monkeypatch.setattr("linkspan.cluster.founding.etcd_service.program", lambda: "/bin/true")
    service = EtcdService(tmp_path, "h1", Voter("192.0.2.1", systemd=True))
    text = unit(" ".join(service.argv()), " ".join(service.condition()))
    service.close()
    assert service.folder == UNIT_FOLDER
    assert {"User=linkspan-etcd", "Restart=always", "After=network-online.target"} <= set(text.splitlines())
    assert sysusers().split()[:2] == ["u", "linkspan-etcd"]
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    path = tmp_path / UNIT_NAME
    path.write_text(text)
    checked = subprocess.run([analyze, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False)
    assert (checked.returncode, [line for line in checked.stderr.splitlines() if UNIT_NAME in line]) == (0, [])


def test_root_follows_nothing_that_etcds_user_puts_into_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that gets an owner is new: links in its place, and where it is written first, are replaced."""
    others = tmp_path / "others"
    others.write_text("theirs")
    monkeypatch.setattr("linkspan.cluster.founding.etcd_service.UNIT_FOLDER", tmp_path / "etcd")
    owners: list[object] = []
    monkeypatch.setattr(EtcdService, "owner", lambda _self: (os.geteuid(), os.getegid()))
    monkeypatch.setattr(os, "chown", lambda path, *_, follow_symlinks=True: owners.append((path, follow_symlinks)))
    service = EtcdService(tmp_path, "h1", Voter("192.0.2.1", systemd=True))
    service.folder.mkdir()
    (service.folder / "server.pem").symlink_to(others)
    os.link(others, temporary(service.folder / "server.pem"))
    service.put("server.pem", b"ours")
    service.close()
    assert (others.read_text(), (service.folder / "server.pem").read_text()) == ("theirs", "ours")
    assert others.stat().st_mode & 0o777 != 0o600
    assert owners == [(tmp_path / "etcd", False)]


def test_a_start_by_systemd_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A voter without a quorum is not ready for long, and whoever wants to end it must not wait for that."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "systemctl").write_text('#!/bin/sh\nexec sleep "$1"\n')
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("linkspan.cluster.founding.etcd_service.JOB_SECONDS", 0.5)
    with pytest.raises(Unavailable, match=r"systemctl 99 x: it takes more than 0\.5 s"):
        etcd_service._systemctl("99", "x")
    done: list[tuple[str, ...]] = []
    monkeypatch.setattr(etcd_service, "_systemctl", lambda *words: done.append(words))
    monkeypatch.setattr(EtcdService, "check", lambda _self: None)
    service = EtcdService(tmp_path, "h1", Voter("192.0.2.1", systemd=True))
    asyncio.run(service.start())
    service.close()
    assert done == [("start", "--no-block", UNIT_NAME)]


def test_a_voter_that_is_a_client_again_leaves_no_failed_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An etcd that waits for open watches is killed, and systemd would call the whole machine degraded."""
    done: list[tuple[str, ...]] = []

    def systemctl(*words: str) -> None:
        done.append(words)
        if words[0] == "reset-failed":
            raise Unavailable("Unit linkspan-etcd.service not loaded")

    monkeypatch.setattr(etcd_service, "_systemctl", systemctl)
    monkeypatch.setattr(etcd_service, "UNIT_FILE", tmp_path)
    service = EtcdService(tmp_path, "h1", Voter("192.0.2.1", systemd=True))
    asyncio.run(service.end())
    service.close()
    assert done == [("disable", "--now", UNIT_NAME), ("reset-failed", UNIT_NAME)]


def test_a_start_that_is_cancelled_has_ended_before_anybody_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread would start etcd after the next step has ended it."""
    begun, may_end, done = threading.Event(), threading.Event(), []

    def put(_self: EtcdService) -> None:
        begun.set()
        may_end.wait()
        done.append("started")

    monkeypatch.setattr(EtcdService, "_put", put)
    service = EtcdService(tmp_path, "h1", Voter("192.0.2.1"))

    async def run() -> None:
        starting = asyncio.create_task(service.start())
        await eventually(begun.is_set, "it starts")
        starting.cancel()
        await asyncio.sleep(0.05)
        assert not starting.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert done == ["started"]

    asyncio.run(run())
    service.close()
