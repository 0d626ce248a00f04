"""Every attribute that stops packets is corrected within two seconds, whoever changed it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from support.agent.agent_host import Host, World, first_ip, pings, run
from support.polling import HEALED_WITHIN, until

pytestmark = pytest.mark.alone


class Standing:
    """A host with a bridged and a routed network, a container on each, and a bridge of somebody else's."""

    def __init__(self, world: World) -> None:
        self.host = Host(world)
        self.host.start()
        self.host.network("demo", "10.201.0.0/24", "fd00:201::/64")
        self.host.network("far", "10.202.0.0/24", "fd00:202::/64", options={"mode": "routed"})
        self.host.cli("network", "allow", "demo", "far")
        self.bridged, self.routed = world.namespace(), world.namespace()
        self.near = self.host.attach(self.bridged)
        self.far = self.host.attach(self.routed, "far")
        other = self.host.attach(world.namespace())
        run("ip", "link", "add", "br9", "type", "bridge", netns=self.host.netns)
        run("ip", "link", "set", "br9", "up", netns=self.host.netns)
        self.names = {
            "PORT": self.near["host_ifname"],
            "OTHER": other["host_ifname"],
            "FAR": self.far["host_ifname"],
            "BR": "ls-demo",
            "NEARIP": first_ip(self.near),
            "NEARMAC": self.near["mac"],
            "FARIP": first_ip(self.far),
            "FARIP6": first_ip(self.far, 6),
        }

    def spelt(self, command: str) -> list[str]:
        """Return a command with the names of this host's objects."""
        spelt = re.sub(r"\b[A-Z]+[0-9]?\b", lambda word: self.names.get(word[0], word[0]), command)
        return spelt.split()

    def works(self) -> bool:
        """Both containers reach the host and each other, by both families."""
        return all(
            pings(self.bridged, first_ip(self.far, family))
            and pings(self.host.netns, first_ip(self.near, family))
            and pings(self.host.netns, first_ip(self.far, family))
            for family in (4, 6)
        )

    def heals(self) -> int:
        """Return how many repairs the event log has."""
        return sum(json.loads(line)["type"] == "heal" for line in self.host.client.lines("/v1/events"))

    def drift(self) -> list[str]:
        """Return what `status` says cannot be repaired."""
        return list(self.host.client.call("GET", "/v1/status")["drift"])


@pytest.fixture(scope="module")
def standing() -> Iterator[Standing]:
    """One host for all faults: each must leave it as it was."""
    world = World()
    try:
        made = Standing(world)
        try:
            assert made.works()
            yield made
        finally:
            made.host.close()
    finally:
        world.remove()


LINKS = """
ip link set FAR master br9
ip link set FAR down
ip link set FAR arp off
ip link set FAR multicast off
ip link set FAR mtu 1280
ip link set FAR address 02:00:00:00:00:99
ip link set FAR state dormant
ip link property del dev FAR altname ALTNAME
ip link set PORT nomaster
ip link set PORT master br9
ip link set PORT arp off
ip link set PORT multicast off
ip link set PORT state dormant
ip link set PORT mode dormant
ip link property del dev PORT altname ALTNAME
ip link set BR arp off
ip link set BR multicast off
ip link set BR type bridge stp_state 1
ip link set BR type bridge group_fwd_mask 0
ip link set BR type bridge ageing_time 0
ip link set BR type bridge mcast_querier 1
ip link set BR type bridge nf_call_iptables 1
ip link set BR type bridge nf_call_ip6tables 1
ip link set BR type bridge nf_call_arptables 1
ip link set BR type bridge fdb_max_learned 1
ip link property del dev BR altname ALTNAME
bridge link set dev PORT state 0
bridge link set dev PORT hairpin off
bridge link set dev PORT guard on
bridge link set dev PORT root_block on
bridge link set dev PORT learning off
bridge link set dev PORT flood off
bridge link set dev PORT learning off flood off
bridge link set dev PORT mcast_flood off
bridge link set dev PORT bcast_flood off
bridge link set dev PORT neigh_suppress on
bridge link set dev PORT vlan_tunnel on
bridge link set dev PORT isolated on
bridge link set dev PORT locked on
bridge link set dev PORT locked on mab on
bridge link set dev PORT mcast_max_groups 1
bridge link set dev PORT backup_port OTHER
ip link set PORT type bridge_slave proxy_arp on
ip link set PORT type bridge_slave proxy_arp_wifi on
"""
QUEUES = """
tc qdisc add dev FAR root tbf rate 8kbit burst 1k latency 1ms
tc qdisc add dev PORT root tbf rate 8kbit burst 1k latency 1ms
tc qdisc add dev BR root pfifo limit 1
tc qdisc add dev FAR root handle 1: pfifo limit 1
"""
ROUTES = """
ip route del 10.201.0.0/24 dev BR proto kernel
ip route del local 10.201.0.1 dev BR table local
ip -6 route del local fd00:201::1 dev BR table local
ip -6 route del fd00:201::/64 dev BR
ip route del FARIP
ip route replace blackhole FARIP proto 76
ip route replace prohibit 10.202.0.0/24 metric 4294967295 proto 76
ip route replace FARIP dev FAR proto 76 hoplimit 1
ip -6 route replace FARIP6 dev FAR proto 76 hoplimit 1
"""
NEIGHBOURS = """
ip neigh replace FARIP lladdr 02:00:00:00:00:99 dev FAR nud permanent
ip neigh replace FARIP lladdr 02:00:00:00:00:99 dev FAR nud noarp
ip -6 neigh replace FARIP6 lladdr 02:00:00:00:00:99 dev FAR nud permanent
ip neigh replace NEARIP lladdr 02:00:00:00:00:99 dev BR nud permanent
bridge fdb replace NEARMAC dev OTHER master static
bridge fdb replace NEARMAC dev PORT master permanent
"""
ADDRESSES = """
ip addr del 10.201.0.1/24 dev BR ; ip addr add 10.201.0.1 peer FARIP/24 dev BR
ip addr del 10.202.0.1/32 dev FAR ; ip addr add 10.202.0.1 peer NEARIP/32 dev FAR
ip addr add 10.202.0.1 peer NEARIP/32 dev FAR
ip addr add 10.201.0.1 peer FARIP/32 dev BR
ip addr del 10.201.0.1/24 dev BR ; ip addr add 10.201.0.1/24 dev BR scope host
ip addr del 10.201.0.1/24 dev BR ; ip addr add 10.201.0.1/24 dev BR scope link
ip addr del 10.201.0.1/24 dev BR ; ip addr add 10.201.0.1/24 dev BR broadcast NEARIP
ip addr del 10.201.0.1/24 dev BR ; ip addr add 10.201.0.9/24 dev BR ; ip addr add 10.201.0.1/24 dev BR
ip addr change 10.201.0.1/24 dev BR preferred_lft 0
ip addr change 10.201.0.1/24 dev BR valid_lft 600 preferred_lft 600
ip addr change 10.201.0.1/24 dev BR metric 5000
ip addr add 10.201.0.77 peer NEARIP/32 dev FAR valid_lft 600 preferred_lft 600
ip -6 addr del fd00:201::1/64 dev BR ; ip -6 addr add fd00:201::1 peer FARIP6/64 dev BR nodad
ip -6 addr add fd00:201::77 peer FARIP6/128 dev BR nodad valid_lft 600 preferred_lft 600
ip -6 addr change fd00:201::1/64 dev BR preferred_lft 0
ip -6 addr change fd00:201::1/64 dev BR valid_lft 600 preferred_lft 600
ip -6 addr change fd00:201::1/64 dev BR metric 5000
ip -6 addr change fd00:201::1/64 dev BR mngtmpaddr
ip -6 addr change fd00:201::1/64 dev BR noprefixroute
"""
TABLES = """
nft add table inet linkspan { flags dormant; }
nft add table bridge linkspan { flags dormant; }
"""
SETTINGS = """
sysctl -qw net/ipv4/conf/FAR/forwarding=0
sysctl -qw net/ipv4/conf/BR/forwarding=0
sysctl -qw net/ipv6/conf/FAR/forwarding=0
sysctl -qw net/ipv6/conf/BR/forwarding=0
sysctl -qw net/ipv4/ip_forward=0
sysctl -qw net/ipv6/conf/all/forwarding=0
sysctl -qw net/ipv4/conf/FAR/arp_ignore=8
sysctl -qw net/ipv4/conf/BR/arp_ignore=8
sysctl -qw net/ipv4/conf/BR/proxy_arp=1
sysctl -qw net/ipv4/conf/BR/proxy_arp_pvlan=1
sysctl -qw net/ipv4/conf/BR/accept_redirects=1
sysctl -qw net/ipv4/conf/BR/send_redirects=1
sysctl -qw net/ipv4/conf/BR/route_localnet=0
sysctl -qw net/ipv6/conf/FAR/disable_ipv6=1
sysctl -qw net/ipv6/conf/BR/disable_ipv6=1
sysctl -qw net/ipv6/conf/FAR/accept_ra=2
sysctl -qw net/ipv6/conf/FAR/accept_redirects=1
"""


FAULTS = [line for line in (LINKS + QUEUES + ROUTES + NEIGHBOURS + ADDRESSES + TABLES + SETTINGS).splitlines() if line]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_put_right(standing: Standing, fault: str) -> None:
    """Within two seconds the kernel shows what it showed before, `diff` and `drift` are empty, and packets pass."""
    host = standing.host
    command = standing.spelt(fault)
    if "ALTNAME" in command:
        link = json.loads(run("ip", "-j", "link", "show", command[command.index("dev") + 1], netns=host.netns))[0]
        command = [link["altnames"][0] if word == "ALTNAME" else word for word in command]
    heals = standing.heals()
    # Of several commands the agent sees the end alone: they take less time than it waits after a first event.
    run(*(["sh", "-ec", " ".join(command)] if ";" in command else command), netns=host.netns)
    until(
        lambda: standing.heals() > heals and host.differences() == [] and standing.drift() == [],
        f"a repair, no difference and no drift, after {fault}",
        HEALED_WITHIN,
    )
    until(standing.works, f"packets after {fault}")
