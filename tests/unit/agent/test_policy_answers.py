"""Answers about policies: containers of other hosts are judged by what those hosts can enforce."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping

import msgspec
import pytest

from linkspan.agent.named_addresses import NamedAddresses
from linkspan.agent.policy_answers import PolicyAnswers
from linkspan.agent.policy_records import PolicyRecords
from linkspan.cluster.allowances import Allowances
from linkspan.cluster.endpoint_records import EndpointRecords
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.core.addresses import prefix
from linkspan.core.errors import Invalid, NotFound, Unavailable
from linkspan.core.model import Allowance, Endpoint, Host, Lease, Network, Port, Underlay
from linkspan.kernel.drivers import bridge_filters
from linkspan.policy.judge import Judge, Party
from linkspan.policy.model import Case, End, Peer, Policy, Ports, Protocol, Rule, Selector
from linkspan.policy.regime import Regime
from support.records.one_host import network

SHUT = Policy(name="shut", select=Selector(names=("web",)), line=1, ingress=())
NETWORK = network("demo", "10.1.0.0/24", routed=False)


SHARED = msgspec.structs.replace(NETWORK, name="shared", backend="host", pools=(), gateways=())


class Placed(EndpointRecords):
    """Records of these endpoints, which are found by their names."""

    def __init__(self, endpoints: list[Endpoint]) -> None:
        self.placed = endpoints

    async def find(self, word: str) -> list[Endpoint]:
        """Return those with this name."""
        if not (found := [one for one in self.placed if one.name == word]):
            raise NotFound(f"there is no container {word}")
        return found

    async def everywhere(self, network: str = "") -> AsyncIterator[list[Endpoint]]:
        """Yield them all."""
        yield self.placed


class Known(Hosts):
    """These hosts; the first is this one."""

    def __init__(self, hosts: tuple[Host, ...]) -> None:
        self.known = hosts

    @property
    def here(self) -> Host:
        """Return the first one."""
        return self.known[0]

    def all(self) -> Mapping[str, Host]:
        """Return them by id."""
        return {host.id: host for host in self.known}


class Two(Networks):
    """A bridged network, and one of backend host."""

    def __init__(self) -> None:
        pass

    def all(self) -> tuple[Network, ...]:
        """Return both."""
        return NETWORK, SHARED


class NoAllowances(Allowances):
    """No network is allowed to reach the other one."""

    def __init__(self) -> None:
        pass

    def all(self) -> tuple[Allowance, ...]:
        """Return none."""
        return ()


class Leased(Leases):
    """In the network demo each host, by its id, has an address of its own."""

    def __init__(self) -> None:
        pass

    def of_host(self, host: str) -> tuple[Lease, ...]:
        """Return the host's lease."""
        return (Lease(network="demo", host=host, addresses=(f"10.1.0.{100 + int(host)}/24",)),)


class Recorded(PolicyRecords):
    """Records of these policies."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        self.recorded = Regime(policies)

    def regime(self) -> Regime:
        """Return what they make."""
        return self.recorded


def _answers(
    *hosts: Host, policies: Iterable[Policy] = (SHUT,), named: NamedAddresses | None = None
) -> tuple[PolicyAnswers, list[Endpoint]]:
    """Return answers on the first of these hosts, and the endpoints that they know."""
    endpoints: list[Endpoint] = []
    placed, recorded = Placed(endpoints), Recorded(policies)
    named = named or NamedAddresses()
    return PolicyAnswers(Two(), NoAllowances(), placed, Known(hosts), Leased(), recorded, named), endpoints


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_a_bridged_container_elsewhere_is_judged_by_its_own_hosts_kernel(
    monkeypatch: pytest.MonkeyPatch, here: bool, there: bool
) -> None:
    """The asked host's br_netfilter does not matter."""
    monkeypatch.setattr(bridge_filters, "available", lambda: here)
    answers, endpoints = _answers(Host(id="1", name="h1", filters=here), Host(id="2", name="h2", filters=there))
    for name, address in (("web", "10.1.0.2/24"), ("other", "10.1.0.3/24")):
        made = Endpoint(
            id=name, name=name, ifname="eth0", network="demo", host="h2", addresses=(address,), host_ifname=f"lsp{name}"
        )
        endpoints.append(made)
    found = asyncio.run(answers.can("other", "web", "80"))
    assert found.allowed == (not there)
    assert ("enforces no policy" in found.why) == (not there)


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_a_rule_of_all_ports_is_said_to_allow_them(monkeypatch: pytest.MonkeyPatch, protocol: Protocol) -> None:
    """Its span has every port, but no packet without one."""
    monkeypatch.setattr(bridge_filters, "available", lambda: True)
    wide = Policy(name="wide", select=Selector(names=("web",)), ingress=(Rule(ports=(Ports(protocol, 1, 65535),)),))
    answers, endpoints = _answers(Host(id="1", name="h1", filters=True), policies=[wide])
    for name, address in (("web", "10.1.0.2/24"), ("other", "10.1.0.3/24")):
        endpoints.append(
            Endpoint(
                id=name, name=name, ifname="eth0", network="demo", host="h1", addresses=(address,), host_ifname="lsp1"
            )
        )
    found = asyncio.run(answers.can("other", "web"))
    assert (found.allowed, found.ports, found.why) == (True, (protocol,), "policy wide allows it")


def test_a_container_on_its_hosts_own_network_is_reached_by_its_ports_alone() -> None:
    """Containers of other hosts come with their host's address, and those of its own with theirs."""
    peers = Peer(select=Selector(names=("near", "far"))), Peer(cidr="192.0.2.3/32")
    policy = Policy(name="front", select=Selector(names=("front",)), line=1, ingress=(Rule(peers=peers, line=2),))
    known = [Host(id=f"{n}", name=f"h{n}", underlay=Underlay("eth0", (f"192.0.2.{n}/24",))) for n in (1, 2, 3)]
    answers, endpoints = _answers(*known, policies=[policy])
    front = Endpoint(
        id="front", name="front", ifname="eth0", network="shared", host="h1",
        ports=(Port("", 8443, 8443, "tcp"), Port("", 9001, 9000, "udp")),
    )  # fmt: skip
    endpoints += [front, msgspec.structs.replace(front, id="mate", name="mate", ports=())]
    for number, (name, host) in enumerate((("near", "h1"), ("other", "h1"), ("far", "h2"), ("third", "h3"))):
        made = Endpoint(
            id=name, name=name, ifname="eth0", network="demo", host=host, addresses=(f"10.1.0.{2 + number}/24",),
            host_ifname="lsr1",
        )  # fmt: skip
        endpoints.append(made)

    def can(source: str, target: str = "front", port: str = "") -> tuple[bool, tuple[str, ...]]:
        found = asyncio.run(answers.can(source, target, port))
        return found.allowed, found.ports

    assert can("near") == (True, ("8443/tcp", "9001/udp"))
    assert can("other", port="8443/tcp") == (False, ())
    assert can("other", port="8444/tcp") == (True, ("8444/tcp",)), "it is no port of the container's"
    assert can("far") == (False, ()), "it comes with the address of h2, which no selector knows"
    assert can("third", port="9001/udp") == (True, ("9001/udp",)), "the address of h3 is allowed"
    assert can("outside") == (False, ())
    assert can("front", "mate") == (True, ("all",)), "both are the host itself"
    assert can("other", "mate") == (True, ("all",)), "nothing of it is published"
    assert asyncio.run(answers.can("mate", "near")).why.startswith("it is the container's own host")


def test_what_a_container_on_a_hosts_own_network_sends_is_its_hosts() -> None:
    """No rule on its own host knows it, and that of another host sees the host's address."""
    everywhere = Peer(select=Selector(names=("back",)))
    policies = [
        Policy(name="shut", select=Selector(names=("back",)), egress=()),
        Policy(name="front", select=Selector(names=("front",)), ingress=(Rule(peers=(Peer(cidr="192.0.2.2/32"),)),)),
        Policy(name="side", select=Selector(names=("side",)), ingress=(Rule(peers=(everywhere,)),)),
    ]
    known = [Host(id=f"{n}", name=f"h{n}", underlay=Underlay("eth0", (f"192.0.2.{n}/24",))) for n in (1, 2)]
    answers, endpoints = _answers(*known, policies=policies)
    for name, host in (("front", "h1"), ("side", "h1"), ("back", "h2")):
        made = Endpoint(
            id=name, name=name, ifname="eth0", network="shared", host=host, ports=(Port("", 8443, 8443, "tcp"),)
        )
        endpoints.append(made)
    assert asyncio.run(answers.can("back", "front")).allowed
    assert not asyncio.run(answers.can("back", "side")).allowed


@pytest.mark.parametrize("internal", [False, True])
def test_a_containers_own_host_reaches_it_from_each_of_its_addresses(
    monkeypatch: pytest.MonkeyPatch, internal: bool
) -> None:
    """From the underlay's, its own in the network, and the gateway. Other hosts are nobody whom this policy allows."""
    network_ = msgspec.structs.replace(NETWORK, internal=internal)
    monkeypatch.setattr(Two, "all", lambda _self: (network_, SHARED))
    hosts = [Host(id=f"{n}", name=f"h{n}", underlay=Underlay("eth0", (f"192.0.2.{n}/24",))) for n in (1, 2)]
    both = msgspec.structs.replace(SHUT, egress=())
    answers, endpoints = _answers(*hosts, policies=[both])
    endpoints.append(msgspec.structs.replace(WEB, host="h2"))
    for own in ("192.0.2.2", "10.1.0.102", "10.1.0.1"):
        assert asyncio.run(answers.can(own, "web", "80")).why.startswith("it is the container's own host"), own
        found = asyncio.run(answers.can("web", own, "80"))
        assert found.allowed == (not internal), "an internal network reaches DNS and ICMP of its host alone"
        assert asyncio.run(answers.can("web", own, "53/udp")).allowed
        assert asyncio.run(answers.can("web", own, "icmp")).allowed
    for other in ("192.0.2.1", "10.1.0.101"):
        assert not asyncio.run(answers.can(other, "web", "80")).allowed
        assert not asyncio.run(answers.can("web", other, "80")).allowed


def test_who_can_tells_the_ports_of_each_network_of_a_container() -> None:
    """A policy about one of them says nothing about the other one."""
    only = Policy(
        name="only", select=Selector(networks=("demo",)), line=1, ingress=(Rule(ports=(Ports("tcp", 80, 80),)),)
    )
    answers, endpoints = _answers(Host(id="1", name="h1", filters=True), policies=[only])
    at = (("demo", "10.1.0.9/24"), ("other", "10.2.0.9/24"))
    endpoints += [msgspec.structs.replace(WEB, ifname=name, network=name, addresses=(text,)) for name, text in at]
    found = [(one.name, one.to, one.address, one.ports) for one in asyncio.run(answers.who_can("web"))]
    assert found == [
        ("outside", "demo", "10.1.0.9", ("80/tcp",)),
        ("outside", "other", "10.2.0.9", ("all",)),
    ]


def test_policies_that_select_nobody_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of a network without containers: policies may come first. None while others' are not known."""
    answers, endpoints = _answers(Host(id="1", name="h1"))
    endpoints.append(msgspec.structs.replace(WEB, labels={"app": "web"}))
    selectors = {
        "label": Selector(labels={"app": "wbe"}),
        "host": Selector(hosts=("h9",)),
        "name": Selector(names=("webb",)),
        "there": Selector(networks=("demo",), labels={"app": "wbe"}),
        "right": Selector(labels={"app": "web"}),
        "early": Selector(networks=("later",)),
    }
    policies = [Policy(name=name, select=select, ingress=()) for name, select in selectors.items()]
    assert asyncio.run(answers.idle(policies)) == {"label", "host", "name", "there"}
    assert asyncio.run(answers.idle(())) == frozenset()
    endpoints.clear()
    assert asyncio.run(answers.idle(policies)) == frozenset()

    async def away(_records: Placed, _network: str = "") -> AsyncIterator[list[Endpoint]]:
        yield [WEB]
        raise Unavailable("the store does not answer")

    monkeypatch.setattr(Placed, "everywhere", away)
    assert asyncio.run(answers.idle(policies)) == frozenset()


API, BELOW = "api.example.com", "*.example.org"
WEB = Endpoint(
    id="web", name="web", ifname="eth0", network="demo", host="h1", addresses=("10.1.0.2/24",), host_ifname="lsr1"
)


def _asked(named: Mapping[str, list[str]], *rules: Rule, ingress: tuple[Rule, ...] | None = None) -> PolicyAnswers:
    """Return answers about a container whose policy lets it out by names, after these rules; ``named`` are known."""
    known = NamedAddresses()
    known.keep(named)
    for name, addresses in named.items():
        for one in addresses:
            known.learn(name, prefix(one), 300)
    by_name = Rule(peers=tuple(Peer(dns=(one,)) for one in (API, BELOW)), ports=(Ports("tcp", 80, 90),), line=9)
    policy = Policy(name="out", select=Selector(names=("web",)), line=1, egress=(*rules, by_name), ingress=ingress)
    answers, endpoints = _answers(Host(id="1", name="h1", filters=True), policies=[policy], named=known)
    endpoints.append(WEB)
    return answers


def _deny(cidr: str, *spans: Ports) -> Rule:
    return Rule(action="deny", peers=(Peer(cidr=cidr),), ports=spans, line=3)


def test_a_name_is_judged_at_each_of_its_addresses() -> None:
    """A rule with cidr that is about one of them refuses the name; answers say at which, and why the others pass."""
    at = {API: ["203.0.113.7", "203.0.113.8", "198.51.100.1"]}
    found = asyncio.run(_asked(at, _deny("198.51.100.0/24")).can("web", API, "80"))
    assert not found.allowed
    assert found.by is not None
    assert found.by.line == 3
    assert found.why == (
        "at 198.51.100.1: policy out refuses it (egress, line 3); "
        "at 203.0.113.7, 203.0.113.8: policy out allows it (line 9); "
        f"on this host {API} has these addresses now"
    )
    found = asyncio.run(_asked(at, _deny("192.0.2.0/24")).can("web", API, "80"))
    assert found.allowed
    assert found.why == (
        f"policy out allows it (line 9); on this host {API} has 198.51.100.1, 203.0.113.7, 203.0.113.8 now"
    )


def test_a_name_that_an_address_rule_opens_is_open() -> None:
    """Also where no rule by DNS name is about the port."""
    opened = Rule(peers=(Peer(cidr="203.0.113.0/24"),), ports=(Ports("tcp", 443, 443),), line=2)
    answers = _asked({API: ["203.0.113.7"]}, opened)
    assert asyncio.run(answers.can("web", API, "443")).allowed
    assert asyncio.run(answers.can("web", API)).ports == ("80-90/tcp", "443/tcp")


def test_the_ports_of_a_name_are_those_of_all_its_addresses() -> None:
    """A port that one of its addresses refuses is not open."""
    closed = _deny("198.51.100.0/24", Ports("tcp", 85, 95)), _deny("203.0.113.8/32", Ports("tcp", 1, 81))
    found = asyncio.run(_asked({API: ["203.0.113.7", "203.0.113.8", "198.51.100.1"]}, *closed).can("web", API))
    assert found.ports == ("82-84/tcp",)


def test_a_name_below_a_wildcard_has_the_addresses_that_are_known_of_that() -> None:
    """Nobody knows which of them is whose; many are not all named."""
    many = [f"203.0.113.{number}" for number in range(1, 10)]
    found = asyncio.run(_asked({BELOW: many}, _deny("203.0.113.9/32")).can("web", "www.example.org", "80"))
    assert not found.allowed
    assert "203.0.113.4 and 4 more: policy out allows it (line 9); on this host *.example.org has" in found.why


def test_rules_by_address_cannot_be_judged_for_a_name_without_any() -> None:
    """The answer says so; only if there are such rules. An address of another family is none for the container."""
    words = f"; this host knows no address of {API} for it, so rules with cidr were not judged"
    for known in ([], ["2001:db8::7"]):
        found = asyncio.run(_asked({API: known}, _deny("198.51.100.0/24")).can("web", API, "80"))
        assert (found.allowed, found.why) == (True, f"policy out allows it (line 9){words}")
    found = asyncio.run(_asked({API: []}).can("web", API, "80"))
    assert (found.allowed, found.why) == (True, "policy out allows it (line 9)")


def test_what_comes_from_a_name_is_judged_by_its_addresses() -> None:
    """Rules of ingress have no names, but name addresses."""
    ingress = Rule(peers=(Peer(cidr="203.0.113.7/32"),), line=5)
    answers = _asked({API: ["203.0.113.7"]}, ingress=(ingress,))
    assert asyncio.run(answers.can(API, "web", "80")).allowed
    answers = _asked({API: ["203.0.113.7", "203.0.113.8"]}, ingress=(ingress,))
    assert not asyncio.run(answers.can(API, "web", "80")).allowed


def test_a_name_with_thousands_of_addresses_is_judged_once_for_all_that_are_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer about all ports takes a millisecond."""
    many = [f"203.0.{number // 250}.{number % 250}" for number in range(4000)]
    answers = _asked({API: many}, _deny("203.0.1.0/24", Ports("tcp", 81, 90)))
    openings, asked = Judge.openings, Counter[str]()

    def counted(judge: Judge, source: Party, target: Party) -> tuple[Ports, ...]:
        asked["openings"] += 1
        return openings(judge, source, target)

    monkeypatch.setattr(Judge, "openings", counted)
    assert asyncio.run(answers.can("web", API)).ports == ("80/tcp",)
    assert asked["openings"] == 2


def test_packets_for_a_container_on_its_hosts_own_network_go_to_its_port() -> None:
    """At the gateway of a container of the same host, else at the underlay; never at an address of loopback."""
    hosts = [Host(id=f"{n}", name=f"h{n}", underlay=Underlay("eth0", (f"192.0.2.{n}/24",))) for n in (1, 2)]
    answers, endpoints = _answers(*hosts)
    at = {80: "", 81: "198.51.100.1", 82: "127.0.0.1", 83: "::"}
    ports = tuple(Port(host_ip, number, number, "tcp") for number, host_ip in at.items())
    front = Endpoint(id="front", name="front", ifname="eth0", network="shared", host="h1", ports=ports)
    endpoints += [front, WEB, msgspec.structs.replace(WEB, id="far", name="far", host="h2", addresses=("10.1.0.9/24",))]

    def address(source: str, port: int) -> str:
        ends = asyncio.run(answers.pair(End(name=source), End(name="front")))
        return answers.address_for(*ends, Ports("tcp", port, port))

    assert address("web", 80) == "10.1.0.1"
    assert address("far", 80) == "192.0.2.1"
    assert address("far", 22) == "192.0.2.1", "the port is the host's own"
    assert address("far", 81) == "198.51.100.1"
    assert address("far", 82) == ""
    assert address("far", 83) == "", "its network has no address of this family"


def test_many_cases_of_a_file_leave_the_agent_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's sign of life above all: without a pause a long file would let the host be taken for dead."""
    monkeypatch.setattr(bridge_filters, "available", lambda: True)
    answers, endpoints = _answers(Host(id="1", name="h1", filters=True))
    endpoints += [WEB, msgspec.structs.replace(WEB, id="other", name="other", addresses=("10.1.0.9/24",))]
    cases = [Case(source=End(name="other"), target=End(name="web"), expect="deny", line=n) for n in range(50)]

    async def main() -> int:
        testing, turns = asyncio.ensure_future(answers.test((), cases)), 0
        while not testing.done():
            turns += 1
            await asyncio.sleep(0)
        assert await testing == []
        return turns

    assert asyncio.run(main()) >= len(cases)


@pytest.mark.parametrize("text", ["10.2.0.0/24", "10.1.0.2/24", "0.0.0.0/0", "fd00::/64"])
def test_a_range_is_no_end(text: str) -> None:
    """The policy lets in all but the first address of a range, so an answer for one of them would hide the others."""
    most = Rule(peers=(Peer(cidr="10.2.0.0/24", excepts=("10.2.0.0/32",)),))
    policy = Policy(name="most", select=Selector(names=("web",)), line=1, ingress=(most,))
    answers, endpoints = _answers(Host(id="1", name="h1"), policies=[policy])
    web = Endpoint(id="web", name="web", ifname="eth0", network="demo", host="h1", addresses=("10.1.0.2/24",))
    endpoints.append(msgspec.structs.replace(web, host_ifname="lsr1"))
    case = Case(source=End(name=text), target=End(name="web"), port="80", expect="deny", line=3)
    for question in (
        answers.can(text, "web", "80"),
        answers.can("web", text),
        answers.who_can(text),
    ):
        with pytest.raises(Invalid, match=f"{text} is a range") as caught:
            asyncio.run(question)
        assert text.partition("/")[0] in caught.value.hint
    (failed,) = asyncio.run(answers.test((), [case]))
    assert (failed.got, failed.line) == ("unknown", 3)
    assert f"{text} is a range" in failed.why
    assert not asyncio.run(answers.can("10.2.0.0/32", "web", "80")).allowed
    assert asyncio.run(answers.can("10.2.0.1", "web", "80")).allowed


def test_an_end_that_is_nobody_says_what_could_be_meant() -> None:
    """A host is asked by its address, and a DNS name counts only where a policy has it."""
    answers, endpoints = _answers(Host(id="1", name="h1", underlay=Underlay(ifname="up", addresses=("192.0.2.1/24",))))
    endpoints.append(WEB)
    for name in ("h1", "host:h1"):
        with pytest.raises(NotFound, match="it is a host") as caught:
            asyncio.run(answers.can(name, "web", "80"))
        assert caught.value.hint == "give an address of it: 192.0.2.1"
    with pytest.raises(NotFound, match="no policy has this DNS name"):
        asyncio.run(answers.can("web", "api.example.com"))


def test_a_case_about_nobody_fails_and_hides_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure names the file and the line of its case: a folder has many."""
    monkeypatch.setattr(bridge_filters, "available", lambda: True)
    answers, endpoints = _answers(Host(id="1", name="h1", filters=True))
    endpoints.append(WEB)
    ends = ("web", "ghost", "web")
    cases = [
        Case(source=End(name="192.0.2.1"), target=End(name=name), expect="allow", line=n, file="shop.yaml")
        for n, name in enumerate(ends, 1)
    ]
    failed = asyncio.run(answers.test((), cases))
    assert [(one.file, one.line, one.got) for one in failed] == [
        ("shop.yaml", 1, "deny"),
        ("shop.yaml", 2, "unknown"),
        ("shop.yaml", 3, "deny"),
    ]
    assert failed[1].why == "there is no container ghost"
