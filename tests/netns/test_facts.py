from __future__ import annotations

import shutil
import socket
import struct
from pathlib import Path

import pytest

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


TRANSLATORS = [
    ("add table ip x; add chain ip x c { type nat hook prerouting priority -100; }", set()),
    ("add rule ip x c tcp dport 9 redirect to :10", {(4, "chain c of table x")}),
    ("delete table ip x; add table inet x; add chain inet x c { type nat hook prerouting priority -100; }", set()),
    ("add rule inet x c tcp dport 9 redirect to :10", {(4, "chain c of table x"), (6, "chain c of table x")}),
    ("delete table inet x; add table ip x; add chain ip x c { type nat hook postrouting priority 100; }", set()),
    ("add rule ip x c masquerade", set()),
]
"""Steps, and what then translates what comes in."""


def test_others_who_may_translate_what_comes_in_are_named(machine: str, spaces: Namespaces, tmp_path: Path) -> None:
    """A chain without rules does not, nor does what only changes sources, nor does linkspan itself."""
    sysctls = SysctlDriver(spaces, tmp_path / "m")
    run("nft", "add table inet linkspan; add chain inet linkspan c { type nat hook prerouting priority -100; }")
    run("nft", "add rule inet linkspan c tcp dport 9 redirect to :10")
    for commands, found in TRANSLATORS:
        run("nft", commands)
        assert observe_facts(sysctls).translated == found, commands


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_engines_lead_to_their_own_containers_only(
    machine: str, spaces: Namespaces, tmp_path: Path, variant: str
) -> None:
    """Docker's chain for published ports does not count; any other rule beside it does."""
    iptables = shutil.which(f"iptables-{variant}")
    if iptables is None:
        pytest.skip(f"needs iptables-{variant}")
    sysctls = SysctlDriver(spaces, tmp_path / "m")
    run(iptables, "-w", "-t", "nat", "-N", "DOCKER")
    run(iptables, "-w", "-t", "nat", "-A", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "DOCKER")
    assert observe_facts(sysctls).translated == set()
    run(iptables, "-w", "-t", "nat", "-A", "PREROUTING", "-d", "10.96.0.1", "-j", "DNAT", "--to", "10.244.1.2")
    assert {family for family, _ in observe_facts(sysctls).translated} == {4}


def test_this_kernel_can_forward_early(spaces: Namespaces, tmp_path: Path) -> None:
    """All kernels that linkspan is tested on can; to find out leaves nothing behind."""
    assert observe_facts(SysctlDriver(spaces, tmp_path / "m")).early
    assert "linkspan-try" not in run("nft", "list", "ruleset")


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
