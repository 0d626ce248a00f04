"""Write watch: enabling forwarding is noticed by the write itself, also if it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkspan.core.states.host import Sysctl
from linkspan.kernel.drivers.sysctl import SysctlDriver
from linkspan.kernel.io import inotify
from linkspan.kernel.io.namespaces import Namespaces
from support.netns.machine_fixtures import run

FORWARD, ALL = "net/ipv4/ip_forward", "net.ipv4.ip_forward"


def test_a_write_of_the_same_value_counts_from_then_on(spaces: Namespaces, tmp_path: Path) -> None:
    """It was the value before, then, also for the next agent; what linkspan writes itself does not count."""
    driver = SysctlDriver(spaces, tmp_path / "m")
    driver.apply([Sysctl(FORWARD, "1")], [])
    assert not driver.noticed()
    assert driver.before(FORWARD) == "0"
    run("sysctl", "-qw", f"{ALL}=1")
    assert driver.noticed()
    assert not driver.noticed()
    assert [SysctlDriver(spaces, tmp_path / "m").before(FORWARD), driver.before(FORWARD)] == ["1", "1"]
    driver.apply([], [Sysctl(FORWARD, "1")])
    assert run("sysctl", "-n", ALL).strip() == "1"


def test_turning_it_off_and_mending_that_is_nobody_s_wish(spaces: Namespaces, tmp_path: Path) -> None:
    """Another writes 0, linkspan writes 1: nobody else has turned it on, in whichever order that is checked."""
    driver = SysctlDriver(spaces, tmp_path / "m")
    driver.apply([Sysctl(FORWARD, "1")], [])
    for looked in (True, False):
        run("sysctl", "-qw", f"{ALL}=0")
        if looked:
            assert not driver.noticed()
        driver.apply([Sysctl(FORWARD, "1")], [])
        assert not driver.noticed()
    assert driver.before(FORWARD) == "0"


def test_a_link_that_comes_later_is_not_among_those_that_were_there(spaces: Namespaces, tmp_path: Path) -> None:
    """Links are written down when forwarding is turned on, with whether they forwarded, for the next agent too."""
    run("ip", "link", "add", "one", "type", "veth", "peer", "name", "two")
    run("sysctl", "-qw", "net.ipv4.conf.two.forwarding=1")
    driver = SysctlDriver(spaces, tmp_path / "m")
    before = driver.there(FORWARD)
    driver.apply([Sysctl(FORWARD, "1")], [])
    run("ip", "link", "add", "three", "type", "veth", "peer", "name", "four")
    for known in (driver, SysctlDriver(spaces, tmp_path / "m")):
        assert known.there(FORWARD) == before
    assert sorted(before.values()) == [False, False, True]  # lo, one, two


def test_a_host_without_a_watch_to_spare_goes_on(
    spaces: Namespaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's inotify instances may all be in use: settings are still set, and the problem is reported."""
    monkeypatch.setattr(inotify, "_shared", [])
    monkeypatch.setattr(inotify._libc, "inotify_init1", lambda _flags: -1)
    driver = SysctlDriver(spaces, tmp_path / "m")
    driver.apply([Sysctl(FORWARD, "1")], [])
    assert driver.watch.problem
    assert not driver.noticed()
    driver.watch.close()
