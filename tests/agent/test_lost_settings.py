"""The record of what settings were before linkspan is lost: the host stays as closed as it was, and it is said."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator

import pytest

from support.agent.agent_host import Host, World, clean, pings, refused, run
from support.agent.damage import follow_move
from support.agent.stage import OUTSIDE, SECOND, SETTINGS, cable
from support.agent.traffic import echoes


class Forwarder(Host):
    """A host with one container; ``second`` and ``third`` are what is at the ends of two more cables."""

    one: str
    second: str
    third: str


@pytest.fixture
def host(world: World) -> Iterator[Forwarder]:
    """Give a host that forwarded from one link of three before linkspan, whose agent has just been killed."""
    found = Forwarder(world)
    beyond = found.outside()
    run("ip", "route", "add", "default", "via", "198.51.100.1", netns=beyond)
    run("ip", "route", "add", "default", "via", "2001:db8::1", netns=beyond)
    found.second = cable(found, "second", SECOND)
    found.third = cable(found, "third", {4: ("192.0.2.129", "192.0.2.130", 25)})
    run("sysctl", "-qw", "net.ipv4.conf.third.forwarding=1", netns=found.netns)
    found.start()
    found.network("demo", "10.201.0.0/16", "fd00:201::/64")
    found.one = world.namespace()
    found.attach(found.one)
    found.stop(signal.SIGKILL)
    try:
        yield found
    finally:
        found.close()


def values(host: Forwarder) -> list[str]:
    """Return what forwarding is."""
    return [run("sysctl", "-n", name, netns=host.netns).strip() for name in SETTINGS.values()]


def removed(host: Forwarder) -> None:
    """Take the record away."""
    (host.state_dir / "sysctls.json").unlink()


def emptied(host: Forwarder) -> None:
    """Empty it, and do what the error says."""
    spoilt(host, b"")


def damaged(host: Forwarder) -> None:
    """Damage it, and do what the error says."""
    spoilt(host, b'{"epoch": "')


def spoilt(host: Forwarder, content: bytes) -> None:
    """Write something over it, and do what the error says."""
    (host.state_dir / "sysctls.json").write_bytes(content)
    said = refused(host)
    assert "sysctls.json is damaged" in said
    assert "forwarding is then restored as far as linkspan's rules show its old value" in said
    follow_move(said)


def told(host: Forwarder) -> str:
    """Return all that the events say."""
    return " ".join(json.loads(line)["what"] for line in host.client.lines("/v1/events"))


@pytest.mark.parametrize("lose", [removed, emptied, damaged])
def test_a_host_that_was_closed_stays_closed(host: Forwarder, lose: Callable[[Host], None]) -> None:
    """The rules record what forwarding was before linkspan: the loss opens nothing, and uninstall restores all."""
    rules = sorted(run("nft", "list", "ruleset", netns=host.netns).splitlines())
    lose(host)
    host.start()
    assert "sysctls.json, which had the settings' values before linkspan, was lost" in told(host)
    for _ in range(2):
        for family in (4, 6):
            assert pings(host.one, OUTSIDE[family])
            assert not echoes(host.second, OUTSIDE[family])
        assert echoes(host.third, OUTSIDE[4])
        assert sorted(run("nft", "list", "ruleset", netns=host.netns).splitlines()) == rules
        clean(host)
        host.restart(signal.SIGKILL)
    host.cli("uninstall", "--yes", "--force")
    assert values(host) == ["0", "0"]
    assert run("sysctl", "-n", "net.ipv4.conf.third.forwarding", netns=host.netns) == "1\n"


def test_an_uninstall_without_the_record_gives_forwarding_back(host: Forwarder) -> None:
    """No agent has to run in between."""
    removed(host)
    host.cli("uninstall", "--yes", "--force", "--state-dir", str(host.state_dir))
    assert values(host) == ["0", "0"]


def test_what_nobody_knows_any_more_is_said_and_left(host: Forwarder) -> None:
    """With the rules gone too: no program's forwarding is stopped, and doctor and uninstall name the settings."""
    removed(host)
    run("nft", "flush", "ruleset", netns=host.netns)
    host.start()
    assert "no rules of linkspan's show it" in told(host)
    assert pings(host.one, OUTSIDE[4])
    for _ in range(2):
        checks = {check["check"]: check for check in host.client.call("GET", "/v1/doctor")}
        found = checks["settings before linkspan"]
        assert found["status"] == "warn"
        assert "net.ipv4.ip_forward=1, net.ipv6.conf.all.forwarding=1" in found["detail"]
        host.restart()
    said = host.cli("uninstall", "--yes", "--force")
    assert "stays: setting net.ipv4.ip_forward = 1: linkspan set it" in said
    assert values(host) == ["1", "1"]


def test_of_a_record_that_is_there_nothing_is_said(host: Forwarder) -> None:
    """A killed agent's, and that of a host that had none yet."""
    host.start()
    assert "lost" not in told(host)
    assert "settings before linkspan" not in {check["check"] for check in host.client.call("GET", "/v1/doctor")}
