"""Open settings on the real kernel: a file that stays open has the present value, also of a new link with the name."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from linkspan.kernel.drivers.sysctl import LONGEST, ROOT
from linkspan.kernel.io.open_settings import OpenSettings
from linkspan.kernel.machine import Machine
from support.netns.machine_fixtures import run

FORWARD = "net/ipv4/ip_forward"
FILTER, REDIRECTS = (f"net/ipv4/conf/ls-a/{name}" for name in ("rp_filter", "send_redirects"))


@pytest.fixture
def settings(host: Machine) -> Iterator[OpenSettings]:
    """Return open settings of a host with a link."""
    run("ip", "link", "add", "ls-a", "type", "bridge")
    found = OpenSettings(ROOT, LONGEST)
    yield found
    found.close()


def files() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def test_each_change_is_read(settings: OpenSettings) -> None:
    """By whomever it is made, and whichever settings are asked for."""
    assert settings.texts([FORWARD, FILTER]) == [b"0\n", b"0\n"]
    run("sysctl", "-qw", f"{FILTER}=2")
    assert settings.texts([FORWARD, FILTER]) == [b"0\n", b"2\n"]
    run("sysctl", "-qw", f"{FORWARD}=1", f"{REDIRECTS}=0")
    assert settings.texts([FILTER, REDIRECTS, FORWARD]) == [b"2\n", b"0\n", b"1\n"]


def test_a_link_that_goes_takes_its_settings_along(settings: OpenSettings) -> None:
    """One with its name has others, and so has one that gets its name."""
    run("sysctl", "-qw", f"{FILTER}=2")
    assert settings.texts([FILTER, FORWARD]) == [b"2\n", b"0\n"]
    run("ip", "link", "del", "ls-a")
    assert settings.texts([FILTER, FORWARD]) == [b"", b"0\n"]
    assert settings.texts([FILTER, FORWARD]) == [b"", b"0\n"]
    run("ip", "link", "add", "ls-b", "type", "bridge")
    run("ip", "link", "set", "ls-b", "name", "ls-a")
    assert settings.texts([FILTER, FORWARD]) == [b"0\n", b"0\n"]


def test_files_that_nobody_reads_any_more_are_closed(settings: OpenSettings) -> None:
    """Those of a link that went, and all others at the end."""
    before = files()
    settings.texts([FORWARD, FILTER, REDIRECTS])
    assert files() == before + 3
    settings.texts([REDIRECTS])
    assert files() == before + 1
    run("ip", "link", "del", "ls-a")
    settings.texts([REDIRECTS])
    assert files() == before
    settings.texts([FORWARD])
    settings.close()
    assert files() == before
