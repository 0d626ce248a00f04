"""WireGuard's driver: one command for however many peers change, and a peer that `wg` refuses costs no other one."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, Unavailable
from linkspan.core.states.host import State
from linkspan.core.states.wireguard import DEVICE, AllowedIp, WireguardPeer
from linkspan.kernel.drivers import wireguard
from linkspan.kernel.drivers.wireguard import WireguardDriver
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.probe import keys
from linkspan.kernel.probe.wireguard_device import Seen, Table

MANY = 1000


def public(number: int) -> str:
    """Return the N-th public key."""
    return base64.b64encode(number.to_bytes(32, "big")).decode()


def peer(number: int, endpoint: str = "192.0.2.2:51820", shared_file: str = "") -> WireguardPeer:
    """Return the N-th peer."""
    return WireguardPeer(DEVICE, public(number), endpoint, 25, shared_file)


def allowed(number: int, at: int | None = None) -> AllowedIp:
    """Return the N-th block, which is the N-th peer's or that of ``at``."""
    return AllowedIp(DEVICE, block(number), public(number if at is None else at))


def block(number: int) -> Prefix:
    """Return the N-th /24."""
    return Prefix(prefix("10.64.0.0/10").at(number << 8).packed, 24)


class Device:
    """A device in memory that reads what `wg` reads, and refuses all at once because of one bad endpoint."""

    def __init__(self, folder: Path, _support: Callable[[], Support]) -> None:
        self.folder = folder
        self.commands: list[str] = []
        self.there = Table(public(0), 51820, {})
        self.answers = True

    def table(self) -> Table | None:
        """Return a copy."""
        peers = {one.public: Seen(one.public, one.endpoint, one.shared, 25, 0, set(one.allowed)) for one in self._all()}
        return Table(self.there.public, self.there.port, peers) if self.answers else None

    def _all(self) -> Iterator[Seen]:
        yield from self.there.peers.values()

    def wg(self, *words: str, given: str = "") -> str:
        """Take a command."""
        self.commands.append(words[0])
        if not self.answers:
            raise Unavailable(f"wg {words[0]} does not end")
        if words[0] == "set":
            rest = iter(words[2:])
            for word in rest:
                of, what = next(rest), next(rest)
                assert word == "peer"
                if what == "remove":
                    del self.there.peers[of]
                else:  # of a peer that was left the first message
                    assert (what, next(rest)) == ("persistent-keepalive", "25")
            return ""
        found = list(map(_section, given.split("[Peer]\n")[1:]))
        if any("nowhere" in one.endpoint for one in found):
            raise KernelError("wg addconf: Temporary failure in name resolution: `nowhere:51820'")
        for one in found:
            for other in self._all():
                other.allowed -= one.allowed
            self.there.peers[one.public] = one
        return ""


def _section(text: str) -> Seen:
    fields = dict(line.split(" = ", 1) for line in text.splitlines())
    prefixes = {prefix(word) for word in fields.get("AllowedIPs", "").split(", ") if word}
    return Seen(fields["PublicKey"], fields.get("Endpoint", ""), fields.get("PresharedKey", ""), allowed=prefixes)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WireguardDriver:
    """Return a driver with such a device."""
    monkeypatch.setattr(wireguard, "Device", Device)
    return WireguardDriver(Sockets(Namespaces()), tmp_path, lambda: Support("kernel"))


def device(of: WireguardDriver) -> Device:
    """Return a driver's device."""
    found: object = of.device
    assert isinstance(found, Device)
    return found


def test_a_thousand_peers_are_one_command(driver: WireguardDriver) -> None:
    """They come by one, change by one, and go by one."""
    peers: list[State] = [peer(n) for n in range(1, MANY + 1)]
    blocks: list[State] = [allowed(n) for n in range(1, MANY + 1)]
    wg = device(driver)
    assert driver.apply([*peers, *blocks], ()) == {}
    assert wg.commands == ["addconf"]
    assert {n for n in range(1, MANY + 1) if wg.there.peers[public(n)].allowed == {block(n)}} == {*range(1, MANY + 1)}
    wg.commands.clear()
    assert driver.apply([allowed(n, at=n % MANY + 1) for n in range(1, MANY + 1)], ()) == {}
    assert wg.commands == ["addconf"]
    assert wg.there.peers[public(1)].allowed == {block(MANY)}
    wg.commands.clear()
    assert driver.apply((), [*blocks, *peers]) == {}
    assert wg.commands == ["set"]
    assert wg.there.peers == {}


def test_a_prefix_that_somebody_moved_goes_where_it_should_be(driver: WireguardDriver) -> None:
    """Its old peer gives it up, but another one has it, and changes in the same batch."""
    assert driver.apply([peer(1), peer(2), peer(3), allowed(1, at=2)], ()) == {}
    other = "192.0.2.9:51820"
    assert driver.apply([peer(3, other), peer(2, other), allowed(1, at=3)], [allowed(1)]) == {}
    assert [device(driver).there.peers[public(n)].allowed for n in (1, 2, 3)] == [set(), set(), {block(1)}]


def test_a_peer_that_is_refused_costs_no_other_one_its_entry(driver: WireguardDriver) -> None:
    """`wg` takes all of a command or nothing; the one is named, with its prefixes."""
    put: list[State] = [peer(n, "nowhere:51820" if n == 3 else "192.0.2.2:51820") for n in range(1, 6)]
    failed = driver.apply([*put, *(allowed(n) for n in range(1, 6))], ())
    assert failed.keys() == {peer(3).key, allowed(3).key}
    assert all("name resolution" in error.message for error in failed.values())
    assert device(driver).there.peers.keys() == {public(n) for n in (1, 2, 4, 5)}


def test_a_device_that_does_not_answer_is_asked_once(driver: WireguardDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand processes that end in vain would keep the kernel's thread for minutes."""
    wg = device(driver)
    there = Table(public(0), 51820, {})
    monkeypatch.setattr(wg, "table", lambda: there)
    wg.answers = False
    put: list[State] = [peer(n) for n in range(1, MANY + 1)]
    assert driver.apply(put, ()).keys() == {state.key for state in put}
    assert wg.commands == ["addconf"]


def test_the_key_that_all_peers_share_is_read_once(
    driver: WireguardDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each second the device is looked at; a thousand reads of one file would cost a tenth of a core."""
    read: list[Path] = []

    def key(path: Path) -> str:
        read.append(path)
        return public(7)

    monkeypatch.setattr(keys, "key", key)
    monkeypatch.setattr(Sockets, "index", lambda *_: 1)
    monkeypatch.setattr(Sockets, "mtu", lambda *_: 1440)
    file = str(tmp_path / "shared")
    put: list[State] = [peer(n, shared_file=file) for n in range(1, MANY + 1)]
    assert driver.apply(put, ()) == {}
    assert len(read) == 1
    found = list(driver.observe(0))
    assert len(read) == 2
    assert {s for s in found if isinstance(s, WireguardPeer)} == set(put)
