"""ADD: what is asked of the agent, and the result in each version."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from linkspan.backends.bridge import host_mac
from linkspan.core.addresses import mac_text
from linkspan.core.errors import (
    Conflict,
    Exhausted,
    Invalid,
    KernelError,
    LinkspanError,
    NotFound,
    Unavailable,
)
from linkspan.core.model import AttachRequest, Bandwidth, Port
from support.cni.cni_agent import DEMO, FakeAgent
from support.cni.cni_calls import PATH, VERSIONS, Runtime, conf

CHAIN: dict[str, Any] = {
    "interfaces": [{"name": "wan0", "mac": "02:00:00:00:00:09", "sandbox": PATH, "mtu": 1400}],
    "ips": [{"address": "192.0.2.9/24", "gateway": "192.0.2.1", "interface": 0}],
    "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1", "mtu": 1300}],
    "dns": {"nameservers": ["192.0.2.53"], "search": ["one.example"]},
}


@pytest.fixture
def runtime() -> Runtime:
    """Return a runtime with its agent."""
    return Runtime(FakeAgent())


def asked(runtime: Runtime, given: dict[str, Any], **environment: str) -> AttachRequest:
    """Return the request that an ADD becomes."""
    runtime.call("ADD", given, **environment)
    return runtime.agent.requests[-1]


@pytest.mark.parametrize("version", VERSIONS)
def test_result_has_the_confs_version_and_its_fields(runtime: Runtime, version: str) -> None:
    """Each version gets the fields that it has, and no others."""
    result = runtime.call("ADD", conf(version))
    container = {"name": "eth0", "mac": "02:00:0a:f4:00:02", "sandbox": PATH}
    host: dict[str, Any] = {"name": "lsp0123456789ab", "mac": mac_text(host_mac(DEMO, "lsp0123456789ab"))}
    ips = [
        {"address": "10.244.0.2/24", "gateway": "10.244.0.1", "interface": 1},
        {"address": "fd00:244::2/64", "gateway": "fd00:244::1", "interface": 1},
    ]
    if version < "1.0.0":
        ips = [{**ip, "version": number} for ip, number in zip(ips, "46", strict=True)]
    if version == "1.1.0":
        container["mtu"] = host["mtu"] = 1500  # type: ignore[assignment]
    assert result == {
        "cniVersion": version,
        "interfaces": [host, container],
        "ips": ips,
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.0.1"}, {"dst": "::/0", "gw": "fd00:244::1"}],
        "dns": {},
    }


def test_the_hosts_end_has_its_mac_in_the_result() -> None:
    """It is the port's own on a bridge, and the gateway's on a routed network."""
    found = set()
    for options in ({}, {"mode": "routed"}):
        network = replace(DEMO, options=options)
        (host, _) = Runtime(FakeAgent(network)).call("ADD", conf())["interfaces"]
        assert host["mac"] == mac_text(host_mac(network, host["name"]))
        found.add(host["mac"])
    assert len(found) == 2


def test_interface_index_zero_is_printed() -> None:
    """An endpoint without a host end has index 0, which is a number like others."""
    agent = FakeAgent()

    class Bare(FakeAgent):
        async def attach(self, request: AttachRequest, namespace_fd: int, namespace_path: str) -> Any:
            return replace(await agent.attach(request, namespace_fd, namespace_path), host_ifname="")

    result = Runtime(Bare()).call("ADD", conf())
    assert [ip["interface"] for ip in result["ips"]] == [0, 0]


def test_internal_network_has_no_default_route() -> None:
    """No route leads out of an internal network."""
    result = Runtime(FakeAgent(replace(DEMO, internal=True))).call("ADD", conf())
    assert result["routes"] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_previous_result_comes_back_first(runtime: Runtime, version: str) -> None:
    """A chain keeps what it had, and our indexes count on from there."""
    result = runtime.call("ADD", conf(version, prevResult={"cniVersion": version, **CHAIN}))
    assert [one["name"] for one in result["interfaces"]] == ["wan0", "lsp0123456789ab", "eth0"]
    assert [ip["interface"] for ip in result["ips"]] == [0, 2, 2]
    assert result["routes"][0]["dst"] == "198.51.100.0/24"
    assert result["dns"] == CHAIN["dns"]
    assert (result["interfaces"][0].get("mtu") == 1400) == (version == "1.1.0")
    assert (result["routes"][0].get("mtu") == 1300) == (version == "1.1.0")
    assert ("version" in result["ips"][0]) == (version < "1.0.0")


def test_null_is_no_previous_result(runtime: Runtime) -> None:
    """A null, and null lists inside, are what a Go program writes for nothing."""
    runtime.call("ADD", conf(prevResult=None))
    runtime.call("ADD", conf(prevResult={"interfaces": None, "ips": None}), CNI_IFNAME="eth1")
    assert len(runtime.agent.attached) == 2


@pytest.mark.parametrize(
    ("previous", "part"),
    [
        ({"ips": [{"address": "192.0.2.9/24", "interface": 3}]}, "interface 3"),
        ({"ips": [{"address": "192.0.2.9/24", "interface": -1}]}, "interface -1"),
        ({"interfaces": [{"mac": "x"}]}, "name"),
        ({"cniVersion": "0.2.0", "ip4": {}}, "0.2.0"),
        ([], "prevResult"),
    ],
)
def test_broken_previous_result_attaches_nothing(runtime: Runtime, previous: Any, part: str) -> None:
    """A result that could not be passed on is refused before anything is made."""
    failed = runtime.fail("ADD", conf(prevResult=previous))
    assert failed["code"] == 7
    assert part in failed["msg"]
    assert not runtime.agent.attached


def test_the_network_s_own_server_is_named_unless_somebody_says_another(runtime: Runtime) -> None:
    """The result leads to the names; what a configuration says counts more."""
    runtime.agent.servers = ("10.244.0.1", "fd00:244::1")
    assert runtime.call("ADD", conf())["dns"] == {"nameservers": ["10.244.0.1", "fd00:244::1"]}
    chosen = runtime.call("ADD", conf(dns={"nameservers": ["192.0.2.1"]}), CNI_IFNAME="eth1")
    assert chosen["dns"] == {"nameservers": ["192.0.2.1"]}


def test_resolver_settings_of_the_runtime_count_most(runtime: Runtime) -> None:
    """The runtime's servers replace the configuration's; what it does not say stays."""
    own = {"nameservers": ["192.0.2.1"], "domain": "two.example", "options": ["ndots:2"]}
    given = conf(dns=own, runtimeConfig={"dns": {"servers": ["192.0.2.2"], "searches": ["a.example"]}})
    result = runtime.call("ADD", given)
    assert result["dns"] == {
        "nameservers": ["192.0.2.2"],
        "domain": "two.example",
        "search": ["a.example"],
        "options": ["ndots:2"],
    }


def test_ports_become_the_requests(runtime: Runtime) -> None:
    """Mappings keep their host address; a protocol may be missing or in capitals."""
    mappings = [
        {"hostPort": 8080, "containerPort": 80},
        {"hostPort": 8080, "containerPort": 80, "protocol": "TCP"},
        {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1"},
        {"hostPort": 9, "containerPort": 9, "protocol": "sctp", "hostIP": "2001:DB8::1"},
    ]
    assert asked(runtime, conf(runtimeConfig={"portMappings": mappings})).ports == (
        Port("", 8080, 80, "tcp"),
        Port("192.0.2.1", 53, 5353, "udp"),
        Port("2001:db8::1", 9, 9, "sctp"),
    )


def test_bandwidth_is_bits(runtime: Runtime) -> None:
    """The limits are passed on in bits; all zero means no limit."""
    given = {"ingressRate": 1_000_000, "ingressBurst": 2048, "egressRate": 8, "egressBurst": 9}
    request = asked(runtime, conf(runtimeConfig={"bandwidth": given}))
    assert request.bandwidth == Bandwidth(1_000_000, 2048, 8, 9)
    nothing = dict.fromkeys(given, 0)
    assert asked(runtime, conf(runtimeConfig={"bandwidth": nothing}), CNI_IFNAME="eth1").bandwidth is None


def test_a_runtime_may_write_names_as_go_does(runtime: Runtime) -> None:
    """The CRI of containerd writes HostPort and IngressRate; a pod's annotations keep their names."""
    given = {
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "192.0.2.1"}],
        "bandwidth": {"IngressRate": 1_000_000, "IngressBurst": 2048, "EgressRate": 8, "EgressBurst": 9},
        "io.kubernetes.cri.pod-annotations": {"linkspan/Tier": "back"},
    }
    request = asked(runtime, conf(runtimeConfig=given))
    assert request.ports == (Port("192.0.2.1", 8080, 80, "tcp"),)
    assert request.bandwidth == Bandwidth(1_000_000, 2048, 8, 9)
    assert request.labels["Tier"] == "back"


def test_a_pod_s_annotations_ask_for_its_addresses_and_mac(runtime: Runtime) -> None:
    """They come after the runtime's own request and before all else, and are no labels."""
    noted = {"linkspan/ip": "10.244.0.8, fd00:244::8", "linkspan/mac": "02:00:00:00:00:0d"}
    pod = {"io.kubernetes.cri.pod-annotations": noted}
    request = asked(runtime, conf(runtimeConfig=pod, args={"cni": {"ips": ["10.244.0.9"]}}))
    assert request.ips == ("10.244.0.8", "fd00:244::8")
    assert request.mac == "02:00:00:00:00:0d"
    assert request.labels == {"linkspan.runtime": "cni"}
    chosen = conf(runtimeConfig=pod | {"ips": ["10.244.0.7"]})
    assert asked(runtime, chosen, CNI_IFNAME="eth1").ips == ("10.244.0.7",)


def test_a_pod_s_annotation_says_who_may_come_in_by_its_ports(runtime: Runtime) -> None:
    """It is no label; a port at an address of a family that no such client has is not published at all."""
    mappings = [{"hostPort": number, "containerPort": 80, "hostIP": at} for number, at in ((80, ""), (81, "::1"))]
    pod = {"io.kubernetes.cri.pod-annotations": {"linkspan/from": "192.0.2.0/25, 192.0.2.128/25"}}
    request = asked(runtime, conf(runtimeConfig=pod | {"portMappings": mappings}))
    assert request.ports == (Port("", 80, 80, "tcp", ("192.0.2.0/24",)),)
    assert request.labels == {"linkspan.runtime": "cni"}


def test_address_is_taken_from_the_nearest_source(runtime: Runtime) -> None:
    """The runtime's ips count before those of args.cni, and those before CNI_ARGS."""
    outer = {"ips": ["10.244.0.7/24", "FD00:244::7"]}
    inner = {"cni": {"ips": ["10.244.0.8"]}}
    environment = {"CNI_ARGS": "IP=10.244.0.9,fd00:244::9/64"}
    all_three = conf(runtimeConfig=outer, args=inner)
    assert asked(runtime, all_three, **environment).ips == ("10.244.0.7", "fd00:244::7")
    assert asked(runtime, conf(args=inner), CNI_IFNAME="eth1", **environment).ips == ("10.244.0.8",)
    assert asked(runtime, conf(), CNI_IFNAME="eth2", **environment).ips == ("10.244.0.9", "fd00:244::9")


def test_mac_is_taken_from_the_nearest_source(runtime: Runtime) -> None:
    """The same order holds for the MAC address, which is written in one way."""
    given = conf(runtimeConfig={"mac": "02-00-00-00-00-0A"}, args={"cni": {"mac": "02:00:00:00:00:0b"}})
    assert asked(runtime, given, CNI_ARGS="MAC=02:00:00:00:00:0c").mac == "02:00:00:00:00:0a"
    request = asked(runtime, conf(), CNI_IFNAME="eth1", CNI_ARGS="MAC=02:00:00:00:00:0C")
    assert request.mac == "02:00:00:00:00:0c"


def test_pod_becomes_name_and_labels(runtime: Runtime) -> None:
    """Kubernetes' data about a pod is on its endpoint, and so are labels and aliases."""
    runtime_config = {
        "aliases": ["db", "db.demo"],
        "io.kubernetes.cri.pod-annotations": {"linkspan/tier": "back", "other.example/big": "x" * 9},
    }
    given = conf(runtimeConfig=runtime_config, args={"cni": {"labels": [{"key": "app", "value": "shop"}]}})
    pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=db-0;K8S_POD_INFRA_CONTAINER_ID=web;K8S_POD_UID=u1;X=y"
    request = asked(runtime, given, CNI_ARGS=pod)
    assert request.name == "db-0"
    assert request.labels == {
        "app": "shop",
        "tier": "back",
        "k8s.namespace": "prod",
        "k8s.pod": "db-0",
        "k8s.uid": "u1",
        "aliases": "db,db.demo",
        "linkspan.runtime": "cni",
    }


def test_a_pod_with_a_long_name_is_attached(runtime: Runtime) -> None:
    """Kubernetes allows 253 characters; the whole name stays in the label."""
    long = "p" * 253
    request = asked(runtime, conf(), CNI_ARGS=f"K8S_POD_NAME={long}")
    assert request.name == ""
    assert request.labels["k8s.pod"] == long


@pytest.mark.parametrize(
    ("args", "part"),
    [("COLOUR=red", "COLOUR"), ("IP", "'IP'"), ("=1", "'=1'"), ("IgnoreUnknown=perhaps;A=1", "perhaps")],
)
def test_unknown_arguments_are_refused(runtime: Runtime, args: str, part: str) -> None:
    """CNI_ARGS is an error that names the key, unless it says IgnoreUnknown."""
    failed = runtime.fail("ADD", conf(), CNI_ARGS=args)
    assert failed["code"] == 4
    assert part in failed["msg"]
    assert not runtime.agent.attached


@pytest.mark.parametrize(
    ("more", "code", "part"),
    [
        ({"runtimeConfig": {"ipRanges": [[{"subnet": "10.9.0.0/16"}]]}}, 2, '[[{"subnet":"10.9.0.0/16"}]]'),
        ({"runtimeConfig": {"ips": ["10.244.0.300"]}}, 7, "10.244.0.300"),
        ({"runtimeConfig": {"ips": [7]}}, 7, "runtimeConfig.ips"),
        ({"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"linkspan/ip": "10.300"}}}, 7, "10.300"),
        ({"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"linkspan/from": "10.0.0.1/8"}}}, 7, "=10.0.0.1/8"),
        ({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}, 7, "unicast"),
        ({"runtimeConfig": {"bandwidth": {"ingressRate": -1}}}, 7, "-1"),
        ({"runtimeConfig": {"bandwidth": {"ingressRate": "1M"}}}, 7, "ingressRate"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 80}]}}, 7, "hostPort 0"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 65536}]}}, 7, "65536"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 80}]}}, 7, "containerPort"),
        (
            {"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]}},
            7,
            "icmp",
        ),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": "x"}]}}, 7, "'x'"),
        ({"runtimeConfig": {"aliases": ["-"]}}, 7, "'-'"),
        ({"runtimeConfig": []}, 7, "runtimeConfig"),
        ({"args": {"cni": 5}}, 7, "args.cni"),
        ({"name": "other"}, 7, "other"),
        ({"name": ""}, 7, "name"),
        ({"name": "../x"}, 7, "../x"),
        ({"name": 5}, 7, "name"),
        ({"cniVersion": "2.0.0"}, 1, "2.0.0"),
        ({"cniVersion": ""}, 1, "cniVersion"),
        ({"cniVersion": ["1.0.0"]}, 1, "cniVersion"),
    ],
)
def test_wrong_configuration_is_named(runtime: Runtime, more: dict[str, Any], code: int, part: str) -> None:
    """The error names the field and its value, and nothing is attached."""
    failed = runtime.fail("ADD", {**conf(), **more})
    assert failed["code"] == code
    assert part in failed["msg"]
    assert not runtime.agent.attached


def test_what_the_network_is_anyway_may_be_said(runtime: Runtime) -> None:
    """A copied configuration of the reference bridge is taken, as far as the network is like that; args are free."""
    more: dict[str, Any] = {
        "ipam": {},
        "isGateway": True,
        "isDefaultGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "mtu": 1500,
        "vlan": 0,
        "promiscMode": None,
        "bridge": "ls-demo",
        "capabilities": {"portMappings": True},
        "cni.dev/later": {"x": 1},
        "args": {"x": 1},
    }
    runtime.call("ADD", conf(**more))
    assert runtime.agent.attached


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("ipam", {"type": "host-local", "subnet": "10.9.0.0/16"}, "from the network's pools"),
        ("mtu", 1400, "linkspan network update demo --mtu"),
        ("ipMasq", False, "--no-masquerade"),
        ("vlan", 100, "no VLANs"),
        ("bridge", "cni0", "itself"),
        ("isGateway", False, "always has a gateway"),
        ("isDefaultGateway", False, "not internal"),
        ("hairpinMode", False, "published ports"),
        ("macspoofchk", False, "always checks"),
        ("promiscMode", True, "hairpin"),
        ("forceAddress", True, "gateway's address"),
        ("scoket", "/run/x.sock", "socket"),
        ("foreign", {}, "leave foreign out"),
        ("runtimeConfig", {"deviceID": "0000:00:1f.6"}, "leave the capability out"),
    ],
)
def test_what_the_network_is_not_is_refused(runtime: Runtime, key: str, value: Any, hint: str) -> None:
    """A key that would have no effect is refused with its value and the reason; a DEL with it succeeds."""
    failed = runtime.fail("ADD", conf(**{key: value}))
    assert failed["code"] == 2
    said = next(iter(value)) if key == "runtimeConfig" else key
    assert f"{said} {json.dumps(value if said == key else value[said], separators=(',', ':'))}" in failed["msg"]
    assert hint in failed["details"]
    assert not runtime.agent.attached
    runtime.call("DEL", conf(**{key: value}))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Invalid("address 10.9.9.9 is outside the pools"), 7),
        (NotFound("network namespace is gone"), 8),
        (Conflict("address 10.244.0.2 is in use by db"), 101),
        (Exhausted("no address left"), 102),
        (Unavailable("the store does not answer"), 11),
        (KernelError("make link: not permitted", 1), 104),
        (LinkspanError("something"), 100),
    ],
)
def test_errors_of_the_agent_have_codes(runtime: Runtime, error: LinkspanError, code: int) -> None:
    """Each kind of error has its code; message and hint continue."""
    error.hint = "what to do"
    runtime.agent.fails["attach"] = error
    failed = runtime.fail("ADD", conf("0.4.0"))
    assert failed == {"cniVersion": "0.4.0", "code": code, "msg": error.message, "details": "what to do"}


def test_second_add_of_an_interface_is_an_error(runtime: Runtime) -> None:
    """An interface that exists is refused, and the first one stays."""
    runtime.call("ADD", conf())
    assert runtime.fail("ADD", conf())["code"] == 101
    assert list(runtime.agent.attached) == [("web", "eth0")]


def test_attachment_whose_result_cannot_be_rendered_is_undone() -> None:
    """The runtime learns of no container then, so nothing may be left of it."""

    class Odd(FakeAgent):
        async def attach(self, request: AttachRequest, namespace_fd: int, namespace_path: str) -> Any:
            return replace(
                await super().attach(request, namespace_fd, namespace_path), gateways=("nowhere", "x")
            )

    agent = Odd()
    failed = Runtime(agent).fail("ADD", conf())
    assert "nowhere" in failed["msg"]
    assert agent.requests
    assert not agent.attached
