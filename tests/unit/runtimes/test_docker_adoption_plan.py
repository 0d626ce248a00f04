"""Plans of adoptions: what the engine says of a bridge network, and what becomes of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from linkspan.runtimes.adoption.bridge_engine import Move
from linkspan.runtimes.docker import docker_adoption_plan as plan
from linkspan.runtimes.docker.docker_adoption_plan import Container, Described


def _network(*, subnet: dict[str, Any] | None = None, **fields: Any) -> Described:
    told = {
        "Name": "shop",
        "Driver": "bridge",
        "Scope": "local",
        "IPAM": {"Driver": "default", "Options": None, "Config": [{"Subnet": "172.31.0.0/16", **(subnet or {})}]},
        "Options": {},
        "Labels": {},
    }
    return msgspec.convert(told | fields, Described)


def _container(attachment: dict[str, Any] | None = None, *, running: bool = True, **fields: Any) -> Container:
    networks = {"shop": {"IPAddress": "172.31.0.2" if running else "", **(attachment or {})}}
    told = {
        "Id": "22a9c4ba2870" + "0" * 52,
        "Name": "/web",
        "State": {"Running": running},
        "NetworkSettings": {"Networks": networks, "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "32768"}]}},
    }
    return msgspec.convert(told | fields, Container)


def _reasons(network: Described, *containers: Container) -> str:
    return "; ".join(f"{left.object}: {left.why}" for left in plan.refusals(network, containers))


def test_a_plain_network_is_asked_of_linkspan_with_its_properties() -> None:
    """Pool, MTU, masquerading and internal; reserved addresses stay reserved."""
    options = {plan.MTU: "1400", plan.MASQUERADE: "false", f"{plan._BRIDGE}enable_icc": "true"}
    network = _network(subnet={"AuxiliaryAddresses": {"printer": "172.31.0.9"}}, Options=options, Internal=True)
    assert _reasons(network, _container()) == ""
    assert plan.successor(network).request == {
        "name": "shop",
        "pools": ["172.31.0.0/16"],
        "backend": "bridge",
        "mtu": 1400,
        "masquerade": False,
        "internal": True,
    }
    assert plan.successor(network).reserved == ("172.31.0.9",)


@pytest.mark.parametrize(("word", "masquerade"), [("0", False), ("f", False), ("False", False), ("1", True)])
def test_masquerading_is_read_as_docker_reads_it(word: str, masquerade: bool) -> None:
    """By Go's strconv.ParseBool."""
    network = _network(Options={plan.MASQUERADE: word})
    assert (_reasons(network), plan.successor(network).masquerade) == ("", masquerade)


def test_docker_s_new_network_has_the_labels_of_the_old_one() -> None:
    """Compose finds its network by them; no option of the bridge goes to driver linkspan."""
    network = _network(Labels={plan.COMPOSE: "shoes"}, Options={plan.MTU: "1400"}, Attachable=True)
    assert plan.ours(network) == {
        "Name": "shop",
        "CheckDuplicate": True,
        "Driver": "linkspan",
        "Internal": False,
        "Attachable": True,
        "EnableIPv6": False,
        "IPAM": {
            "Driver": "linkspan",
            "Options": {"network": "shop"},
            "Config": [{"Subnet": "172.31.0.0/16"}],
        },
        "Options": {"network": "shop"},
        "Labels": {plan.COMPOSE: "shoes"},
    }


def test_the_bridge_network_can_be_created_as_it_was() -> None:
    """The plan asks the engine for what it told before, after that was in the record."""
    subnet = {"Gateway": "172.31.0.1", "AuxiliaryAddresses": {"printer": "172.31.0.9"}}
    network = _network(subnet=subnet, Options={plan.BRIDGE_NAME: "shop0"}, Labels={"a": "b"})
    asked = plan.original(msgspec.json.decode(msgspec.json.encode(network), type=Described))
    assert asked["IPAM"] == {
        "Driver": "default",
        "Options": None,
        "Config": ({"Subnet": "172.31.0.0/16", **subnet},),
    }
    assert (asked["Driver"], asked["Options"], asked["Labels"]) == ("bridge", {plan.BRIDGE_NAME: "shop0"}, {"a": "b"})


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (_network(Driver="macvlan"), "its driver is macvlan"),
        (_network(Name="bridge"), "default network"),
        (_network(Options={plan.DEFAULT: "true"}), "default network"),
        (_network(Scope="swarm"), "swarm"),
        (_network(Ingress=True), "swarm"),
        (_network(ConfigFrom={"Network": "other"}), "swarm"),
        (_network(EnableIPv4=False), "no IPv4 subnet"),
        (_network(IPAM={"Driver": "default", "Config": [{"Subnet": "fd00:1::/64"}]}), "no IPv4 subnet"),
        (_network(IPAM={"Driver": "dhcp", "Config": [{"Subnet": "10.0.0.0/8"}]}), "IPAM driver dhcp"),
        (_network(Options={f"{plan._BRIDGE}enable_icc": "false"}), "enable_icc=false has no equivalent"),
        (_network(Options={f"{plan._BRIDGE}host_binding_ipv4": "127.0.0.1"}), "host_binding_ipv4=127.0.0.1"),
        (_network(Options={"com.docker.network.container_iface_prefix": "x"}), "container_iface_prefix=x"),
        (_network(Options={plan.MTU: "large"}), "not a number"),
        (_network(Options={plan.MASQUERADE: "no"}), "enable_ip_masquerade=no is neither true nor false"),
        (_network(subnet={"IPRange": "172.31.5.0/24"}), "--ip-range 172.31.5.0/24"),
        (_network(subnet={"Gateway": "172.31.255.254"}), "its gateway is 172.31.255.254"),
        (_network(subnet={"Subnet": "nonsense"}), "subnet nonsense"),
        (_network(subnet={"Gateway": "nonsense"}), "subnet 172.31.0.0/16"),
    ],
)
def test_a_network_that_linkspan_cannot_imitate_is_refused(network: Described, why: str) -> None:
    """The reason names what is special about it."""
    assert why in _reasons(network)


@pytest.mark.parametrize(
    ("container", "why"),
    [
        (_container(Config={"Labels": {plan.SWARM: "x"}}), "a swarm manages it"),
        (_container({"DriverOpts": {"com.docker.network.endpoint.ifname": "in0"}}), "endpoint.ifname"),
        (_container({"IPAMConfig": {"LinkLocalIPs": ["169.254.1.1"]}}), "link-local"),
        (_container(HostConfig={"PortBindings": {"80/tcp": [{"HostIp": "::1", "HostPort": "80"}]}}), "80/tcp"),
    ],
)
def test_a_container_that_cannot_be_moved_is_refused(container: Container, why: str) -> None:
    """The reason names the container."""
    assert why in _reasons(_network(), container)
    assert _reasons(_network(), container).startswith("container web: ")


def test_containers_of_other_networks_do_not_count() -> None:
    """A swarm's container elsewhere is in nobody's way."""
    elsewhere = _container(Config={"Labels": {plan.SWARM: "x"}}, NetworkSettings={"Networks": {"other": {}}})
    assert _reasons(_network(), elsewhere) == ""


def test_a_running_container_keeps_its_addresses_and_a_stopped_one_its_wishes() -> None:
    """The engine adds the short id itself, as an alias."""
    running = _container({"GlobalIPv6Address": "fd00::2", "Aliases": ["www", "22a9c4ba2870"], "Links": ["db:db"]})
    moved = plan.move(running, running.on("shop") or plan.Attachment())
    assert moved == Move("web", True, ("172.31.0.2", "fd00::2"), ("db:db",), ("www",))
    assert plan.endpoint(moved)["IPAMConfig"] == {"IPv4Address": "172.31.0.2", "IPv6Address": "fd00::2"}
    stopped = _container({"IPAMConfig": {"IPv4Address": "172.31.7.7"}}, running=False)
    assert plan.move(stopped, stopped.on("shop") or plan.Attachment()) == Move("web", False, ("172.31.7.7",))
    free = _container(running=False)
    assert plan.endpoint(plan.move(free, free.on("shop") or plan.Attachment()))["IPAMConfig"] == {}


def test_what_is_different_afterwards_is_told() -> None:
    """A bridge's name, Compose, ports that Docker chose, and a MAC."""
    network = _network(Options={plan.BRIDGE_NAME: "shop0"}, Labels={plan.COMPOSE: "shoes"})
    bindings = {"80/tcp": [{"HostIp": "", "HostPort": ""}], "81/tcp": [{"HostPort": "8081"}]}
    web = _container(HostConfig={"PortBindings": bindings}, Config={"MacAddress": "02:42:0a:00:00:99"})
    told = [note.why for note in plan.notes(network, [web])]
    assert len(told) == 4
    assert "shop0" in told[0]
    assert "shoes" in told[1]
    assert "80/tcp (now 32768)" in told[2]
    assert "02:42:0a:00:00:99" in told[3]
    assert plan.notes(_network(), [_container()]) == []


def test_a_gateway_priority_may_be_lost() -> None:
    """Only a container with several networks can have one, and the engine's API of 20.10 does not show it."""
    web = _container()
    networks = {"shop": web.network_settings.networks["shop"], "back": plan.Attachment()}  # type: ignore[index]
    settings = msgspec.structs.replace(web.network_settings, networks=networks)
    web = msgspec.structs.replace(web, network_settings=settings)
    assert ["--gw-priority" in note.why for note in plan.notes(_network(), [web])] == [True]
