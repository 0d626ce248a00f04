"""Other programs' networks on a host where linkspan turned forwarding on: theirs work, and the host is no router."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support.agent.agent_host import Host, World, pings, run
from support.agent.stage import OUTSIDE, SECOND, SETTINGS, UPLINK, cable
from support.agent.traffic import echoes
from support.polling import until

THEIRS = {4: ("10.77.0.1", "10.77.0.2", 24), 6: ("fd00:77::1", "fd00:77::2", 64)}


@pytest.fixture
def host(world: World) -> Iterator[Host]:
    """Give a host with an uplink, whose outside sends all back by it; no agent runs yet."""
    found = Host(world)
    beyond = found.outside()
    for address in UPLINK.values():
        run("ip", "route", "add", "default", "via", address, netns=beyond)
    try:
        yield found
    finally:
        found.close()


def bridge(host: Host, name: str) -> str:
    """Make a bridge of another program's, with a container."""
    run("ip", "link", "add", name, "type", "bridge", netns=host.netns)
    run("ip", "link", "set", name, "up", netns=host.netns)
    return cable(host, name, THEIRS, master=name)


def pair(host: Host, name: str) -> str:
    """Make a container that is routed by a pair of its own, as the ptp plugin does."""
    return cable(host, name, THEIRS)


@pytest.mark.parametrize(
    ("make", "name"), [(bridge, "kube-bridge"), (bridge, "mynet0"), (pair, "veth1a2b3c")], ids=["kube", "named", "ptp"]
)
def test_networks_that_others_make_later_work(host: Host, make: Callable[[Host, str], str], name: str) -> None:
    """Forwarding was off, and linkspan turned it on: what another program makes then reaches the outside."""
    host.start()
    host.network("demo", "10.201.0.0/16", "fd00:201::/64")
    theirs = make(host, name)
    for _ in range(2):
        for family in (4, 6):
            assert pings(theirs, OUTSIDE[family])
        host.restart()


def test_who_turns_forwarding_on_has_it(host: Host) -> None:
    """A user who writes 1 where linkspan wrote 1 opens the host for that family for good; uninstalling leaves it."""
    second = cable(host, "second", SECOND)
    host.start()
    host.network("demo", "10.201.0.0/16", "fd00:201::/64")
    told = {check["check"]: check for check in host.client.call("GET", "/v1/doctor")}
    for family in (4, 6):
        assert not echoes(second, OUTSIDE[family])
        assert "second, uplink" in told[f"routing IPv{family}"]["detail"]
    run("sysctl", "-qw", f"{SETTINGS[4]}=1", netns=host.netns)
    until(lambda: echoes(second, OUTSIDE[4]), "IPv4 is forwarded")
    assert not echoes(second, OUTSIDE[6])
    told = {check["check"]: check for check in host.client.call("GET", "/v1/doctor")}
    assert "routing IPv4" not in told
    host.restart()
    assert echoes(second, OUTSIDE[4])
    run("sysctl", "-qw", f"{SETTINGS[6]}=1", netns=host.netns)
    until(lambda: echoes(second, OUTSIDE[6]), "IPv6 is forwarded")
    host.cli("uninstall", "--yes", "--force")
    assert [run("sysctl", "-n", name, netns=host.netns) for name in SETTINGS.values()] == ["1\n", "1\n"]


def test_setting_it_to_0_opens_nothing(host: Host) -> None:
    """Somebody turns forwarding off, and linkspan puts it back for its containers: the host is closed as before."""
    second = cable(host, "second", SECOND)
    host.start()
    host.network("demo", "10.201.0.0/16")
    run("sysctl", "-qw", f"{SETTINGS[4]}=0", netns=host.netns)
    until(lambda: run("sysctl", "-n", SETTINGS[4], netns=host.netns) == "1\n", "it is put back")
    assert not echoes(second, OUTSIDE[4])
    host.restart()
    assert not echoes(second, OUTSIDE[4])
    host.cli("uninstall", "--yes", "--force")
    assert run("sysctl", "-n", SETTINGS[4], netns=host.netns) == "0\n"


def test_a_link_that_forwarded_before_does(host: Host) -> None:
    """Forwarding was on for one link only: packets that come in by it are forwarded, and no others."""
    second = cable(host, "second", {4: SECOND[4]})
    third = cable(host, "third", {4: ("192.0.2.129", "192.0.2.130", 25)})
    for link in ("second", "uplink"):
        run("sysctl", "-qw", f"net.ipv4.conf.{link}.forwarding=1", netns=host.netns)
    assert echoes(second, OUTSIDE[4])
    host.start()
    host.network("demo", "10.201.0.0/16")
    assert echoes(second, OUTSIDE[4])
    assert not echoes(third, "203.0.113.2")


def test_frames_within_a_bridge_that_was_there_pass(host: Host) -> None:
    """With br_netfilter they pass the forward hook, between one bridge and itself."""
    for tables in ("iptables", "ip6tables"):
        run("sysctl", "-qw", f"net.bridge.bridge-nf-call-{tables}=1", netns=host.netns)
    one, two = bridge(host, "brlan"), host.world.namespace()
    run("ip", *f"link add v-two netns {host.netns} type veth peer name eth0 netns {two}".split())
    run("ip", "link", "set", "v-two", "up", "master", "brlan", netns=host.netns)
    run("ip", "link", "set", "eth0", "up", netns=two)
    for family, (_, other, length) in THEIRS.items():
        nodad = ("nodad",) if family == 6 else ()
        run("ip", "addr", "add", f"{other[:-1]}3/{length}", "dev", "eth0", *nodad, netns=two)
    host.start()
    host.network("demo", "10.201.0.0/16", "fd00:201::/64")
    for family in (4, 6):
        assert pings(two, THEIRS[family][1])
        assert not echoes(one, OUTSIDE[family])


def test_an_agent_takes_one_inotify_instance(host: Host) -> None:
    """For settings, the store and queued removals together: root has 128 for all agents of a machine."""
    host.start()
    host.network("demo", "10.201.0.0/16")
    assert host.process is not None
    shown = run("ls", "-l", f"/proc/{host.process.pid}/fd", check=False)  # it may close one meanwhile
    assert sum("inotify" in link for link in shown.splitlines()) == 1
