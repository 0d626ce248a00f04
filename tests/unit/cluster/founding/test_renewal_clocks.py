"""A host renews its certificate by a signer whose clock differs, and asks again after a failure."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from linkspan.cluster.founding import renewal
from linkspan.cluster.founding.certificates import Shown, new_key
from linkspan.cluster.founding.reissue import RenewalWish, Renewed
from linkspan.cluster.founding.renewal import Renewal
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.cluster.founding.validity import FIRST, fingerprints, parsed
from linkspan.core.errors import Denied, Unavailable
from support.memory_vault import Etcd
from support.polling import eventually

TEN_MINUTES = 600.0


class Host:
    """A host that has joined, with its files, and a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        (folder / "voter").mkdir()
        self.etcd = Etcd(monkeypatch, folder / "voter")
        self.files = TrustFiles(folder / "host")
        self.asked = 0
        self.failure: Exception | None = None
        monkeypatch.setattr(renewal, "ask", self._ask)
        self.renewal = Renewal(self.files, "h2", lambda: ["192.0.2.1:5379"], lambda: None, 3600)

    async def join(self) -> None:
        """Join."""
        await self.etcd.token("a1")
        key = new_key()
        self.files.put(self.files.key, key)
        self.files.put(self.files.certificate, (await self.etcd.join("h2", "a1", key)).certificate.encode())
        self.files.put(self.files.authority, self.etcd.files.authority.read_bytes())

    async def _ask(self, files: TrustFiles, signers: Sequence[str]) -> Renewed:
        self.asked += 1
        assert signers == ("192.0.2.1:5381",)
        if self.failure is not None:
            raise self.failure
        shown = Shown(ssl.PEM_cert_to_DER_cert(files.certificate.read_text()))
        return await self.etcd.reissue.renew(shown, RenewalWish(fingerprints(files.authority.read_bytes())))

    @property
    def serial(self) -> int:
        """The serial number of its certificate."""
        return parsed(self.files.certificate.read_bytes()).serial


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    """Give a host."""
    return Host(monkeypatch, tmp_path)


def test_clocks_ten_minutes_apart_delay_a_renewal_and_prevent_none(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signer decides by its own clock; until it agrees, the host says what to compare, and tries again."""

    async def run() -> None:
        await host.join()
        first, one = host.serial, parsed(host.files.certificate.read_bytes())
        await host.renewal._look()  # at its start, where nothing is due
        assert host.serial == first
        there = one.at(FIRST) - 1
        monkeypatch.setattr(time, "time", lambda: max(one.due, there + TEN_MINUTES))  # on the host

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
                return cls.fromtimestamp(there, tz)

        monkeypatch.setattr("datetime.datetime", Clock)
        with pytest.raises(Unavailable, match="for younger than this host does"):
            await host.renewal._look()
        assert host.serial == first
        there += 2
        await host.renewal._look()
        assert host.serial != first
        behind = parsed(host.files.certificate.read_bytes())
        monkeypatch.setattr(time, "time", lambda: behind.made - TEN_MINUTES)
        assert host.renewal.held()[0].problem == ""

    asyncio.run(run())


def test_a_host_that_is_told_asks_at_once_also_after_a_failure(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause after failures may be half an hour, and the authorities change now."""
    monkeypatch.setattr(renewal, "SPREAD_SECONDS", 0.0)
    monkeypatch.setattr(renewal, "RETRY_SECONDS", (1800.0, 1800.0))

    async def run() -> None:
        await host.join()
        host.failure = Denied("it refuses this host's certificate", "join again")
        host.renewal.start()
        await eventually(lambda: host.asked == 1, "it asks at its start")
        await eventually(lambda: host.renewal.held()[0].fix == "join again", "the operator is told")
        host.failure = None
        host.renewal.soon()
        await eventually(lambda: host.asked > 1 and host.renewal.held()[0].problem == "", "it asks again")
        asked = host.asked
        host.renewal.soon()
        await eventually(lambda: host.asked > asked, "and whenever it is told")
        await host.renewal.stop()

    asyncio.run(run())


def test_who_tells_hosts_in_a_loop_does_not_make_them_ask_in_one(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any host may write that record; a few changes in a row are followed at once."""
    assert renewal.rest([1.0] * (renewal.TOLD_MOST - 1), 2.0) == 0
    assert renewal.rest([1.0, *[5.0] * (renewal.TOLD_MOST - 1)], 11.0) == renewal.TOLD_SECONDS - 10
    assert renewal.rest([1.0] * renewal.TOLD_MOST, 2 + renewal.TOLD_SECONDS) == 0
    monkeypatch.setattr(renewal, "SPREAD_SECONDS", 0.0)

    async def run() -> None:
        await host.join()
        host.renewal.start()
        for _ in range(5 * renewal.TOLD_MOST):
            host.renewal.soon()
            await asyncio.sleep(0.02)
        await host.renewal.stop()
        assert 2 <= host.asked <= renewal.TOLD_MOST + 1

    asyncio.run(run())
