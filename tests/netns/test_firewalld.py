from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Unavailable
from linkspan.core.states.host import HOST, TrustedSource
from linkspan.kernel.drivers.firewalld import FirewalldDriver, running
from linkspan.kernel.drivers.sysctl import SysctlDriver
from linkspan.kernel.facts import observe_facts
from linkspan.kernel.io.namespaces import Namespaces
from support.netns.firewalld_fixture import firewall_cmd, firewalld_runs
from support.netns.machine_fixtures import inside, joined, pings, run
from support.polling import until

POOLS = [TrustedSource(prefix("10.99.1.0/24")), TrustedSource(prefix("fd99:1::/64"))]


@pytest.fixture
def daemon(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[bytes]]:
    with firewalld_runs(tmp_path, monkeypatch) as child:
        yield child


@pytest.fixture
def driver(daemon: subprocess.Popen[bytes], spaces: Namespaces, tmp_path: Path) -> FirewalldDriver:
    return FirewalldDriver(tmp_path / "m", spaces.home)


def trusted() -> set[str]:
    return set(firewall_cmd("--zone=trusted", "--list-sources"))


def test_pools_are_trusted_observed_and_taken_away(
    driver: FirewalldDriver, spaces: Namespaces, tmp_path: Path
) -> None:
    """A user's own sources stay, and the next agent recognizes linkspan's."""
    firewall_cmd("--zone=trusted", "--add-source=198.51.100.0/24")
    firewall_cmd("--zone=trusted", "--add-source=02:00:00:00:00:01")
    before = trusted()
    assert list(driver.observe(HOST)) == []
    assert driver.apply(POOLS, []) == {}
    assert list(driver.observe(HOST)) == POOLS
    assert trusted() == before | {"10.99.1.0/24", "fd99:1::/64"}
    again = FirewalldDriver(tmp_path / "m", spaces.home)
    assert list(again.observe(HOST)) == POOLS
    assert again.apply(POOLS, []) == {}
    assert again.apply([], POOLS) == {}
    assert trusted() == before
    assert list(again.observe(HOST)) == []
    assert again.apply([], POOLS) == {}


def test_a_reload_forgets_them_and_a_put_brings_them_back(driver: FirewalldDriver) -> None:
    """They are there at run time only."""
    driver.apply(POOLS, [])
    firewall_cmd("--reload")
    assert list(driver.observe(HOST)) == []
    assert driver.apply(POOLS, []) == {}
    assert list(driver.observe(HOST)) == POOLS


def test_a_source_that_the_user_trusts_already_is_used_and_left(driver: FirewalldDriver) -> None:
    """It is observed once asked for, and a delete does not take it away."""
    firewall_cmd("--zone=trusted", "--add-source=10.99.1.0/24")
    assert driver.apply(POOLS[:1], []) == {}
    assert list(driver.observe(HOST)) == POOLS[:1]
    assert driver.apply([], POOLS[:1]) == {}
    assert trusted() == {"10.99.1.0/24"}


def test_a_source_of_another_zone_is_a_conflict_that_names_the_zone(driver: FirewalldDriver) -> None:
    """The other pool is still trusted."""
    firewall_cmd("--zone=work", "--add-source=10.99.1.0/24")
    errors = driver.apply(POOLS, [])
    assert list(errors) == [POOLS[0].key]
    assert isinstance(errors[POOLS[0].key], Conflict)
    assert "zone work" in errors[POOLS[0].key].message
    assert list(driver.observe(HOST)) == POOLS[1:]


@pytest.mark.parametrize(("pool", "address"), [(POOLS[0], "10.99.2.2"), (POOLS[1], "fd99:2::2")])
def test_forwarded_traffic_needs_the_trusted_source(
    container: str, outside: str, driver: FirewalldDriver, pool: TrustedSource, address: str
) -> None:
    """Not without it, with it, not after a reload, and again once it is put back."""
    joined(container, "c0", 1)
    joined(outside, "o0", 2)
    until(lambda: pings(container, "10.99.1.1"), "the way to the machine", 40)
    assert not pings(container, address)
    driver.apply([pool], [])
    until(lambda: pings(container, address), "the way through the machine", 40)
    firewall_cmd("--reload")
    assert not pings(container, address)
    driver.apply([pool], [])
    until(lambda: pings(container, address), "the way through the machine, again", 40)
    driver.apply([], [pool])
    assert not pings(container, address)


@pytest.mark.parametrize(
    ("family", "to", "at"), [("ip", "10.99.1.2", "10.99.2.1"), ("ip6", "fd99:1::2", "fd99:2::1")]
)
def test_a_published_port_is_reached_through_firewalld(
    container: str, outside: str, driver: FirewalldDriver, family: str, to: str, at: str
) -> None:
    """Packets translated by our table pass: firewalld accepts translated connections, and we trust the way back."""
    joined(container, "c0", 1)
    joined(outside, "o0", 2)
    driver.apply(POOLS, [])
    run(
        "nft",
        f"add table {family} ours; add chain {family} ours pre {{ type nat hook prerouting priority -100; }}",
    )
    target = f"[{to}]:80" if ":" in to else f"{to}:80"
    run("nft", f"add rule {family} ours pre tcp dport 8080 dnat to {target}")
    with inside(container):
        server = socket.create_server((to, 80), family=socket.AF_INET6 if ":" in to else socket.AF_INET)

    def connects() -> bool:
        with inside(outside):
            try:
                socket.create_connection((at, 8080), timeout=1).close()
            except OSError:
                return False
        return True

    with server:
        until(connects, "the connection to the published port", 40)


def test_it_runs_only_where_its_table_and_its_name_are(
    daemon: subprocess.Popen[bytes], spaces: Namespaces, tmp_path: Path
) -> None:
    """A bus shared with another namespace is no sign, nor is a leftover table."""
    sysctls = SysctlDriver(spaces, tmp_path / "s")
    assert running()
    assert observe_facts(sysctls).firewalld
    daemon.kill()
    daemon.wait()
    until(lambda: not running(), "its name to be gone", 40)
    assert "firewalld" in run("nft", "list", "tables")
    assert not observe_facts(sysctls).firewalld
    driver = FirewalldDriver(tmp_path / "m", spaces.home)
    assert list(driver.observe(HOST)) == []
    assert isinstance(driver.apply(POOLS, [])[POOLS[0].key], Unavailable)
    assert driver.apply([], POOLS) == {}


def test_another_namespace_s_firewalld_is_not_asked(
    daemon: subprocess.Popen[bytes], container: str, spaces: Namespaces
) -> None:
    """Virtual hosts share the machine's bus: without the table here, it does not run here."""
    spaces.register(Path("/run/netns", container).stat().st_ino, f"/run/netns/{container}")
    with spaces.entered(Path("/run/netns", container).stat().st_ino):
        assert not running()
    assert running()
