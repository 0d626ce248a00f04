from __future__ import annotations

import socket
import struct
from pathlib import Path

from linkspan.core.states.host import Sysctl
from linkspan.kernel.drivers.sysctl import SysctlDriver
from linkspan.kernel.facts import observe_facts
from linkspan.kernel.io.namespaces import Namespaces
from support.netns.machine_fixtures import inside, joined, run
from support.polling import until


def test_forwarding_is_what_it_was_before_ours(spaces: Namespaces, tmp_path: Path) -> None:
    """Forwarding that linkspan enabled does not count; what a user enabled does."""
    sysctls = SysctlDriver(spaces, tmp_path / "m")
    assert observe_facts(sysctls).forwarding == frozenset()
    sysctls.apply([Sysctl("net/ipv4/ip_forward", "1")], [])
    assert observe_facts(sysctls).forwarding == frozenset()
    run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    assert observe_facts(sysctls).forwarding == frozenset({6})


def test_nothing_odd_is_nothing(spaces: Namespaces, tmp_path: Path) -> None:
    """An empty namespace has no chains, no firewalld, no router advertisements."""
    facts = observe_facts(SysctlDriver(spaces, tmp_path / "m"))
    assert not facts.firewalld
    assert not facts.forward_chains
    assert not facts.ra_links


def advertise(device: str) -> None:
    """Send one router advertisement with a prefix (RFC 4861 4.2), as a router on the link does."""
    option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + bytes.fromhex("fd990003") + bytes(12)
    message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + option
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.sendto(message, ("ff02::1", 0, 0, socket.if_nametoindex(device)))


def test_a_link_that_lives_by_router_advertisements_is_named(
    machine: str, outside: str, spaces: Namespaces, tmp_path: Path
) -> None:
    """Also once linkspan has set accept_ra there: the fact is about before."""
    joined(outside, "up0", 3)
    run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.up0.accept_ra=1")
    sysctls = SysctlDriver(spaces, tmp_path / "m")
    assert not observe_facts(sysctls).ra_links

    def heard() -> bool:
        with inside(outside):
            advertise("eth0")
        return "up0" in observe_facts(sysctls).ra_links

    until(heard, "the advertisement's route", 40)
    assert "default" in run("ip", "-6", "route", "show", "proto", "ra")
    sysctls.apply(
        [Sysctl("net/ipv6/conf/up0/accept_ra", "2"), Sysctl("net/ipv6/conf/all/forwarding", "1")], []
    )
    assert observe_facts(sysctls).ra_links == {"up0"}
    assert "default" in run("ip", "-6", "route", "show", "proto", "ra"), "accept_ra=2 first keeps the route"
