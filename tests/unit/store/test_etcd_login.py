"""Login at etcd: one at a time for each gateway, and no more than needed, because each costs etcd 70 ms."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from linkspan.core.errors import Unavailable
from linkspan.core.store_url import EtcdUrl
from linkspan.store.etcd_errors import UNAUTHENTICATED, Failed, Refused
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_wire import Json
from support.virtual_time import in_virtual_time

ONE, TWO = "192.0.2.1:2379", "192.0.2.2:2379"


class Busy(Gateway):
    """A gateway whose members take ``takes`` seconds for a login, and accept the tokens ``good``."""

    def __init__(self, folder: Path, *endpoints: str) -> None:
        password = folder / "password"
        password.write_text("secret\n")
        password.chmod(0o600)
        super().__init__(EtcdUrl(endpoints or (ONE,), "/c/", user="h1", password_file=str(password)))
        self.takes = 1.5
        self.good: set[str] = set()
        self.logins: list[tuple[float, str]] = []
        """When each login began, and where."""
        self.under_way = self.most = 0
        self.silent: set[str] = set()
        """Endpoints that answer nothing."""
        self.waits: set[str] = set()
        """Tokens that no member lets in or refuses, as after a restore."""
        self.leaderless = False

    async def _ask(self, endpoint: str, path: str, body: Json, token: str, seconds: float = 0) -> bytes:
        """Answer as etcd does."""
        patience = seconds or 3.0
        if endpoint in self.silent:
            await asyncio.sleep(patience)
            raise self._timed_out(endpoint)
        if path == "/v3/maintenance/status":
            return msgspec.json.encode({"errors": ["etcdserver: no leader"] if self.leaderless else []})
        if self.leaderless or token in self.waits:
            await asyncio.sleep(patience)
            raise self._timed_out(endpoint)
        if path != "/v3/auth/authenticate":
            if token not in self.good:
                raise Refused("invalid auth token", "", UNAUTHENTICATED)
            return b"{}"
        self.logins.append((asyncio.get_running_loop().time(), endpoint))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(min(self.takes, patience))
        finally:
            self.under_way -= 1
        if self.takes > patience:
            raise self._timed_out(endpoint)
        made = f"token{len(self.logins)}"
        self.good.add(made)
        return msgspec.json.encode({"token": made})

    @staticmethod
    def _timed_out(endpoint: str) -> Failed:
        return Failed(f"etcd {endpoint}: no answer", "", sent=True, unanswered=True)




def test_a_caller_that_gives_up_leaves_its_login_to_the_others(tmp_path: Path) -> None:
    """Else etcd would do its work for nothing, and each next caller would begin again."""

    async def work() -> None:
        gateway = Busy(tmp_path)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.4):
                    await gateway.call("/v3/kv/range", {})
        await asyncio.gather(*(gateway.call("/v3/kv/range", {}) for _ in range(5)))
        assert (len(gateway.logins), gateway.most) == (1, 1)
        await gateway.close()

    in_virtual_time(work)


def test_a_member_that_fails_a_login_does_not_fail_those_at_another(tmp_path: Path) -> None:
    """Who waits for another's login begins an own one then."""

    async def work() -> None:
        gateway = Busy(tmp_path, ONE, TWO)
        gateway.silent = {ONE}
        first = asyncio.create_task(gateway.at(ONE, "/v3/kv/range", {}, 3))
        await asyncio.sleep(0)
        assert await gateway.at(TWO, "/v3/kv/range", {}, 3) == b"{}"
        with pytest.raises(Unavailable):
            await first
        await gateway.close()

    in_virtual_time(work)


@pytest.mark.parametrize("leaderless", [True, False])
def test_a_token_outlives_an_outage(tmp_path: Path, leaderless: bool) -> None:
    """If all hosts logged in again at once, those of some hundred would wait for many seconds."""

    async def work() -> None:
        gateway = Busy(tmp_path)
        await gateway.call("/v3/kv/range", {})
        gateway.leaderless, gateway.silent = leaderless, set() if leaderless else {ONE}
        for _ in range(3):
            with pytest.raises(Unavailable):
                await gateway.call("/v3/kv/range", {})
        gateway.leaderless, gateway.silent = False, set()
        await gateway.call("/v3/kv/range", {})
        assert len(gateway.logins) == 1
        await gateway.close()

    in_virtual_time(work)


def test_a_token_that_a_restored_member_lets_wait_is_given_up(tmp_path: Path) -> None:
    """The member waits for a revision of before, which may never come."""

    async def work() -> None:
        gateway = Busy(tmp_path)
        await gateway.call("/v3/kv/range", {})
        gateway.waits = {*gateway.good}
        with pytest.raises(Unavailable):
            await gateway.call("/v3/kv/range", {})
        await gateway.call("/v3/kv/range", {})
        await gateway.close()

    in_virtual_time(work)


def test_logins_that_a_busy_member_does_not_answer_become_rare(tmp_path: Path) -> None:
    """Each costs it as much as one that it answers in time. Once it answers, there is no pause any more."""

    async def work() -> None:
        gateway = Busy(tmp_path)
        gateway.takes = 60.0
        loop = asyncio.get_running_loop()
        end = loop.time() + 300
        while loop.time() < end:
            with pytest.raises(Unavailable):
                await gateway.call("/v3/kv/range", {})
        assert len(gateway.logins) < 60  # without pauses 100
        gateway.takes = 0.1
        await gateway.call("/v3/kv/range", {})
        gateway.good.clear()
        begun = loop.time()
        await gateway.call("/v3/kv/range", {})
        assert loop.time() - begun < 0.2
        await gateway.close()

    in_virtual_time(work)
