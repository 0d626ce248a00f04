"""Flows that policies forbid: judged by the host that enforces, and by what the packets are after a translation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from linkspan.agent.named_addresses import NamedAddresses
from linkspan.agent.policy_flows import Flows, Known, Parties
from linkspan.core.addresses import prefix
from linkspan.kernel.probe.conntrack import Flow
from linkspan.policy.judge import Judge
from linkspan.policy.model import Peer, Policy, Ports, Rule, Selector, Subject

WEB = Policy(
    name="web",
    select=Selector(labels={"app": "web"}),
    ingress=(Rule(peers=(Peer(select=Selector(labels={"app": "proxy"})),), ports=(Ports("tcp", 80, 80),)),),
    egress=(Rule(peers=(Peer(outside=True),)),),
)
ADDRESSES = {"web": "10.1.0.2", "proxy": "10.1.0.3", "db": "10.1.0.4"}
POOLS = [prefix("10.1.0.0/16")]


def forbidden(source: str, target: str, *, here: str = "web", protocol: str = "tcp", port: int = 80) -> bool:
    """Return whether a flow between two addresses is forbidden on the host of one container."""
    judge = Judge([WEB])
    known = {
        at: Known(prefix(at), judge.chosen(Subject(name, "x", "h1", {"app": name})), name)
        for name, at in ADDRESSES.items()
    }
    flows = Flows(judge, known, {ADDRESSES[here]}, POOLS, {"10.1.0.1"}, {})
    one, other = (prefix(ADDRESSES.get(end, end)) for end in (source, target))
    return flows(Flow(one, other, protocol, port))


def test_a_flow_is_forbidden_as_its_first_packet_would_be() -> None:
    """By protocol, port and both ends."""
    assert not forbidden("proxy", "web")
    assert forbidden("proxy", "web", port=81)
    assert forbidden("proxy", "web", protocol="udp")
    assert forbidden("db", "web")
    assert forbidden("192.0.2.1", "web")
    assert not forbidden("web", "192.0.2.1", port=443)
    assert forbidden("web", "db")


def test_a_host_cuts_only_flows_of_its_own_endpoints() -> None:
    """The other end's policies are its host's business, and a flow of the host itself is nobody's."""
    assert not forbidden("db", "web", here="db")
    assert not forbidden("192.0.2.1", "198.51.100.1")
    assert not forbidden("10.1.9.9", "192.0.2.1")


def test_a_flow_with_the_host_itself_is_never_forbidden() -> None:
    """It passes no rule of policies: health checks, DNS, ports of loopback."""
    assert not forbidden("10.1.0.1", "web", port=81)
    assert not forbidden("web", "10.1.0.1", protocol="udp", port=53)
    assert not forbidden("127.0.0.1", "web", port=81)


def test_a_flow_to_a_port_of_the_host_is_judged_by_the_container_that_has_it() -> None:
    """At the address at which it has it; nobody else's port is anybody's business."""
    judge = Judge([WEB])
    chosen = judge.chosen(Subject("web", "x", "h1", {"app": "web"}))
    known = {spot: Known(None, chosen, "web") for spot in ("4 tcp 80", "192.0.2.9 tcp 443")}
    known["10.1.0.3"] = Known(prefix("10.1.0.3"), judge.chosen(Subject("p", "x", "h1", {"app": "proxy"})), "proxy")
    flows = Flows(judge, known, (), POOLS, {"192.0.2.1", "192.0.2.9", "2001:db8::1"}, {})

    def cut(source: str, target: str, port: int, protocol: str = "tcp") -> bool:
        return flows(Flow(prefix(source), prefix(target), protocol, port))

    assert not cut("10.1.0.3", "192.0.2.1", 80)
    assert cut("198.51.100.7", "192.0.2.1", 80)
    assert cut("198.51.100.7", "192.0.2.9", 443)
    assert not cut("198.51.100.7", "192.0.2.1", 443)
    assert not cut("198.51.100.7", "192.0.2.1", 80, "udp")
    assert not cut("198.51.100.7", "203.0.113.5", 80), "it is not the host's"
    assert not cut("192.0.2.1", "192.0.2.9", 443), "the host itself"
    assert not cut("2001:db8::7", "2001:db8::1", 80)


def test_a_protocol_that_no_rule_names_is_forbidden_as_well() -> None:
    """GRE has no ports, so a rule with ports does not allow it."""
    assert forbidden("proxy", "web", protocol="47", port=0)
    assert not forbidden("web", "192.0.2.1", protocol="47", port=0)


def test_an_address_that_another_endpoint_has_by_now_stays_its() -> None:
    """It came with h3's record, and then h2's old one went; only an address with another meaning is a difference."""
    no_networks: Any = SimpleNamespace(all=list)
    parties, two, three = Parties(no_networks, {}, NamedAddresses()), ("policy", "host", "h2"), ("policy", "host", "h3")
    web, db = (Known(prefix(ADDRESSES["web"]), frozenset({name}), name) for name in ("web", "db"))
    at = ADDRESSES["web"]
    assert not parties.note(two, {at: web})
    assert not parties.note(two, {at: web})
    assert not parties.note(three, {at: db})
    assert not parties.note(two, {})
    assert (_name(parties, at), {*parties.sources()}) == ("db", {three})
    assert parties.note(three, {at: web})
    assert not parties.note(three, {})
    assert _name(parties, at) == at


def _name(parties: Parties, address: str) -> str:
    return parties.flows(Judge()).names(Flow(prefix(address), prefix("192.0.2.1"), "tcp", 80))[0]


def test_the_target_of_a_flow_to_the_host_is_called_by_who_has_the_port() -> None:
    """At one address or at all; the same port elsewhere is another one, and a port of nobody's is the host's."""
    known = {spot: Known(None, frozenset(), spot) for spot in ("4 tcp 80", "192.0.2.9 tcp 443")}
    known["10.1.0.3"] = Known(prefix("10.1.0.3"), frozenset(), "proxy")
    flows = Flows(Judge(), known, (), POOLS, {"192.0.2.9"}, {})

    def target(address: str, port: int, *, to_host: bool = False) -> str:
        source, target = flows.names(Flow(prefix("10.1.0.3"), prefix(address), "tcp", port), to_host=to_host)
        assert source == "proxy"
        return target

    assert target("192.0.2.9", 80) == "4 tcp 80"
    assert target("192.0.2.9", 443) == "192.0.2.9 tcp 443"
    assert target("192.0.2.9", 22) == "192.0.2.9"
    assert target("198.51.100.1", 80) == "198.51.100.1"
    assert target("198.51.100.1", 80, to_host=True) == "4 tcp 80"


def test_at_a_new_port_of_the_host_there_may_be_older_flows() -> None:
    """Of whoever had the port before; an address of a pool is new with its container."""
    no_networks: Any = None
    parties, source = Parties(no_networks, {}, NamedAddresses()), ("policy", "endpoint", "c1", "eth0")
    port, at = Known(None, frozenset({"web"}), "web"), ADDRESSES["web"]
    assert parties.note(source, {"4 udp 53": port})
    assert not parties.note(source, {"4 udp 53": port})
    assert parties.note(source, {"4 udp 53": port, "4 udp 54": port})
    assert not parties.note(source, {"4 udp 54": port})
    assert not parties.note(source, {"4 udp 54": port, at: Known(prefix(at), port.chosen, "web")})
