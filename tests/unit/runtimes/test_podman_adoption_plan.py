"""Plans of adoptions: what Podman says of a bridge network, and what becomes of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from linkspan.runtimes.adoption.bridge_engine import Move
from linkspan.runtimes.podman import podman_adoption_plan as plan
from linkspan.runtimes.podman.podman_adoption_plan import Container, Described, Inspected, Wish

ID = "22a9c4ba2870" + "0" * 52
SUBNET = {"subnet": "172.31.0.0/16", "gateway": "172.31.0.1"}


def _network(**fields: Any) -> Described:
    told = {"name": "shop", "driver": "bridge", "network_interface": "podman1", "subnets": [SUBNET]}
    more = {"dns_enabled": True, "ipam_options": {"driver": "host-local"}}
    return msgspec.convert(told | more | fields, Described)


def _container(*, status: str = "running", wishes: dict[str, Wish] | None = None, **fields: Any) -> Container:
    networks = {"shop": {"IPAddress": "172.31.0.2", "MacAddress": "aa:bb:cc:dd:ee:ff"}} if status == "running" else {}
    told = {"Id": ID, "Name": "web", "State": {"Status": status, "Pid": 7}, "NetworkSettings": {"Networks": networks}}
    return Container(msgspec.convert(told | fields, Inspected), wishes or {"shop": Wish("eth0")})


def _reasons(network: Described, *containers: Container) -> str:
    return "; ".join(f"{left.object}: {left.why}" for left in plan.refusals(network, containers))


def test_a_plain_network_is_asked_of_linkspan_and_of_podman_with_its_properties() -> None:
    """Pools, MTU, internal, IPv6 and labels; no option of the bridge goes to driver linkspan."""
    subnets = [SUBNET, {"subnet": "fd00:31::/64", "gateway": "fd00:31::1"}]
    options = {"mtu": "1400", "isolate": "false", "mode": "managed"}
    network = _network(subnets=subnets, options=options, internal=True, ipv6_enabled=True, labels={"a": "b"})
    assert _reasons(network, _container()) == ""
    assert plan.successor(network).request == {
        "name": "shop",
        "pools": ["172.31.0.0/16", "fd00:31::/64"],
        "backend": "bridge",
        "mtu": 1400,
        "masquerade": True,
        "internal": True,
    }
    assert " ".join(plan.ours(network)) == (
        "network create --driver linkspan --ipam-driver none --opt network=shop --internal --ipv6 --label a=b shop"
    )


def test_the_bridge_network_can_be_created_as_it_was() -> None:
    """By the options of `podman network create`; a bridge that Podman numbered gets the number that is free."""
    assert " ".join(plan.original(_network(options={"mtu": "1400"}))) == (
        "network create --driver bridge --subnet 172.31.0.0/16 --gateway 172.31.0.1 --opt mtu=1400 shop"
    )
    chosen = _network(network_interface="shop0", dns_enabled=False, internal=True, subnets=[{"subnet": "10.9.0.0/16"}])
    assert " ".join(plan.original(chosen)) == (
        "network create --driver bridge --subnet 10.9.0.0/16 --disable-dns --interface-name shop0 --internal shop"
    )


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (_network(driver="macvlan"), "its driver is macvlan"),
        (_network(name="podman"), "default network"),
        (_network(ipam_options={"driver": "dhcp"}), "IPAM driver dhcp"),
        (_network(options={"isolate": "true"}), "isolate=true has no equivalent"),
        (_network(options={"vlan": "7"}), "vlan=7"),
        (_network(options={"mtu": "large"}), "not a number"),
        (_network(routes=[{"destination": "10.1.0.0/16"}]), "route 10.1.0.0/16"),
        (_network(network_dns_servers=["192.0.2.1"]), "DNS server 192.0.2.1"),
        (_network(subnets=[]), "no subnet"),
        (_network(subnets=[{**SUBNET, "gateway": "172.31.0.9"}]), "its gateway is 172.31.0.9"),
        (_network(subnets=[{**SUBNET, "lease_range": {"start_ip": "172.31.5.1"}}]), "--ip-range of 172.31.0.0/16"),
        (_network(subnets=[{"subnet": "nonsense"}]), "subnet nonsense"),
    ],
)
def test_a_network_that_linkspan_cannot_imitate_is_refused(network: Described, why: str) -> None:
    """The reason names what is special about it."""
    assert why in _reasons(network, _container())


@pytest.mark.parametrize(
    ("container", "why"),
    [
        (_container(status="paused"), "it is paused"),
        (_container(wishes={"shop": Wish("eth0", options={"x": "y"})}), "bridge driver for this network: x"),
        (_container(HostConfig={"PortBindings": {"80/tcp": [{"HostIp": "::1", "HostPort": "80"}]}}), "80/tcp"),
        (_container(NetworkSettings={"Networks": {"shop": {"IPAddress": "172.31.0.1"}}}), "address 172.31.0.1"),
        (_container(status="exited", wishes={"shop": Wish(static_ips=("172.31.0.1",))}), "address 172.31.0.1"),
    ],
)
def test_a_container_that_cannot_be_moved_is_refused(container: Container, why: str) -> None:
    """The reason names the container; on another network it is in nobody's way."""
    assert why in _reasons(_network(), container)
    assert _reasons(_network(), container).startswith("container web: ")
    assert _reasons(_network(name="other"), container) == ""


def test_a_running_container_keeps_its_addresses_and_a_stopped_one_its_wishes() -> None:
    """Podman adds the short id itself, as an alias."""
    at = plan.attached(_container(wishes={"shop": Wish("eth0", aliases=("www", ID[:12]))}), "shop")
    assert at is not None
    assert (at.id, at.endpoint, at.pid, at.mac) == (ID, ID, 7, "aa:bb:cc:dd:ee:ff")
    assert at.move == Move("web", True, ("172.31.0.2",), aliases=("www",), mac="aa:bb:cc:dd:ee:ff")
    assert " ".join(plan.connecting("shop", ID, at.move)) == (
        f"network connect --ip 172.31.0.2 --mac-address aa:bb:cc:dd:ee:ff --alias www shop {ID}"
    )
    chosen = Wish(static_ips=("172.31.7.7", "fd00::7"), static_mac="02:00:00:00:00:07")
    stopped = plan.attached(_container(status="exited", wishes={"shop": chosen}), "shop")
    assert stopped is not None
    assert stopped.move == Move("web", False, ("172.31.7.7", "fd00::7"), mac="02:00:00:00:00:07")
    assert "--ip6 fd00::7" in " ".join(plan.connecting("shop", ID, stopped.move))
    assert plan.attached(_container(), "other") is None


def test_what_is_different_afterwards_is_told() -> None:
    """A bridge's name, DNS, Compose, and an interface whose name cannot be kept."""
    network = _network(network_interface="shop0", dns_enabled=False, labels={plan.COMPOSE[0]: "shoes"})
    named, second = _container(wishes={"shop": Wish("lan0")}), _container(wishes={"shop": Wish("eth1")})
    told = [note.why for note in plan.notes(network, [named, second])]
    assert len(told) == 5
    for why, word in zip(told, ("shop0", "DNS server", "shoes", "lan0 becomes eth0", "eth1 becomes eth0"), strict=True):
        assert word in why
    both = _container(wishes={"shop": Wish("eth1"), "back": Wish("eth0")})
    assert plan.notes(_network(), [_container(), both]) == []


def test_podman_s_domain_is_taken_out_of_resolv_conf() -> None:
    """Other domains, and all other lines, stay."""
    assert plan.without_search("search dns.podman\nnameserver 172.31.0.1\n") == "nameserver 172.31.0.1\n"
    assert plan.without_search("search a.b dns.podman\noptions x\n") == "search a.b\noptions x\n"
    assert plan.without_search("# search dns.podman\n\n") == "# search dns.podman\n\n"
