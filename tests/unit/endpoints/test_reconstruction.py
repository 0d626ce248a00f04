"""Endpoints that the journal does not know, from what a kernel has and a store says."""

from __future__ import annotations

import msgspec
import pytest

from linkspan.backends import backend
from linkspan.core import fast_path
from linkspan.core.addresses import mac, prefix
from linkspan.core.model import AttachRequest, Bandwidth, Endpoint, Network, Port
from linkspan.core.states.host import HOST, State
from linkspan.endpoints import reconstruction
from linkspan.endpoints.build import described, tuned
from linkspan.endpoints.multihoming import container_states
from support.records.one_host import NETNS, endpoint, network


def on_host(of: Network, *endpoints: Endpoint) -> list[State]:
    """Return what the host's kernel has of the endpoints of one container."""
    every = [state for one in endpoints for state in backend(of.backend).endpoint(of, one)]
    every += container_states([(of, one) for one in endpoints])
    return [state for state in every if getattr(state, "netns", HOST) == HOST]


MODES = pytest.mark.parametrize("routed", [False, True], ids=["bridged", "routed"])


@MODES
@pytest.mark.parametrize(
    "ports",
    [
        (),
        (Port("", 80, 8080, "tcp"),),
        (Port("0.0.0.0", 80, 8080, "tcp"), Port("::", 81, 8080, "udp")),
        (Port("192.0.2.1", 80, 8080, "sctp"), Port("2001:db8::1", 80, 8080, "sctp"), Port("", 53, 53, "udp")),
        (Port("", 80, 80, "tcp", ("192.0.2.0/24",)), Port("", 80, 80, "udp"), Port("::", 81, 80, "tcp", ("fd2::/64",))),
    ],
)
def test_the_kernel_tells_everything_but_the_id(routed: bool, ports: tuple[Port, ...]) -> None:
    """Addresses, MAC, network, ports and the limit on the host's end are read back as they were put."""
    of = network("demo", "10.1.0.0/24", "fd00:1::/64", routed=routed)
    other = network("else", "10.2.0.0/24", routed=routed)
    made = endpoint(of, "10.1.0.5", "fd00:1::5", ports=ports)
    made = msgspec.structs.replace(made, bandwidth=Bandwidth(ingress_rate=8_000_000, ingress_burst=8 * 65536))
    link = reconstruction.links(on_host(of, made))[made.host_ifname]
    found = reconstruction.from_kernel(link, [other, of], [], "h1", 0)
    assert found is not None
    assert reconstruction.is_unnamed(found)
    made = msgspec.structs.replace(made, ports=tuple(sorted(ports)), netns_path="", netns_cookie=0)
    assert found == msgspec.structs.replace(made, id=made.host_ifname)
    named = reconstruction.from_kernel(link, [of], ["net", "c1"], "h1", 0)
    assert named is not None
    assert named.id == "c1"


def test_what_the_fast_path_has_of_a_pair_says_nothing() -> None:
    """A container is recognised by the same elements, whether it is on that path or not."""
    of = network("demo", "10.1.0.0/24", routed=True)
    made = endpoint(of, "10.1.0.5")
    plain = on_host(of, made)
    links = reconstruction.links([*plain, *fast_path.endpoint_states(made, "lsx64")])
    assert links == reconstruction.links(plain)
    assert reconstruction.agrees(made, of, links[made.host_ifname])


@MODES
def test_what_a_later_plugin_of_a_chain_has_set_is_read_back(routed: bool) -> None:
    """The MAC that it gave, the one before that for the link-local address, and an MTU below the network's."""
    of = network("demo", "10.1.0.0/24", "fd00:1::/64", routed=routed)
    made = tuned(of, endpoint(of, "10.1.0.5", "fd00:1::5"), "02:00:00:00:00:09", 1400)
    link = reconstruction.links(on_host(of, made))[made.host_ifname]
    assert reconstruction.agrees(made, of, link)
    found = reconstruction.from_kernel(link, [of], ["c1"], "h1", 0)
    assert found == msgspec.structs.replace(made, netns_path="", netns_cookie=0)


@MODES
def test_only_the_right_id_is_recognised(routed: bool) -> None:
    """A pair's name is a digest of id and interface: another id, or another interface, is not taken for it."""
    of = network("demo", "10.1.0.0/24", routed=routed)
    made = endpoint(of, "10.1.0.5")
    unnamed = msgspec.structs.replace(made, id=made.host_ifname)
    assert reconstruction.may_be(unnamed, "c1")
    assert reconstruction.may_be(unnamed, "c1", "eth0")
    assert not reconstruction.may_be(unnamed, "c2")
    assert not reconstruction.may_be(unnamed, "c1", "eth1")


@MODES
def test_a_record_that_says_otherwise_than_the_kernel_is_not_believed(routed: bool) -> None:
    """Another address, MAC, namespace, port or container: the kernel's values count."""
    of = network("demo", "10.1.0.0/24", routed=routed)
    made = endpoint(of, "10.1.0.5", ports=[Port("", 80, 80, "tcp")])
    link = reconstruction.links(on_host(of, made))[made.host_ifname]
    assert reconstruction.agrees(made, of, link)
    for change in (
        {"addresses": ("10.1.0.6/24",)},
        {"addresses": ("10.9.0.5/24",)},
        {"mac": "02:00:00:00:00:01"},
        {"netns": NETNS + 1},
        {"ports": ()},
        {"ports": (Port("", 81, 80, "tcp"),)},
        {"ports": (Port("", 80, 80, "tcp", ("192.0.2.0/24",)),)},
        {"id": "c2"},
        {"delivered": "eth0"},
    ):
        assert not reconstruction.agrees(msgspec.structs.replace(made, **change), of, link), change
    assert not reconstruction.agrees(made, None, link)


def test_the_row_is_believed_unless_the_record_alone_is_what_the_kernel_has() -> None:
    """A row of an older backup loses; a row that a foreign change in the kernel contradicts does not."""
    of = network("demo", "10.1.0.0/24", routed=False)
    old, new = endpoint(of, "10.1.0.5"), endpoint(of, "10.1.0.6")
    link = reconstruction.links(on_host(of, new))[new.host_ifname]
    networks = {"demo": of}
    assert reconstruction.chosen(link, old, new, networks) == new
    assert reconstruction.chosen(link, new, old, networks) == new
    assert reconstruction.chosen(link, old, None, networks) == old
    assert reconstruction.chosen(link, None, new, networks) == new
    assert reconstruction.chosen(link, None, old, networks) is None


def test_a_pair_without_rules_or_of_no_network_says_too_little() -> None:
    """Nothing is made up: such a pair is an orphan."""
    of = network("demo", "10.1.0.0/24", routed=False)
    made = endpoint(of, "10.1.0.5")
    states = on_host(of, made)
    bare = reconstruction.links(states[:1])[made.host_ifname]
    assert bare.addresses == ()
    assert reconstruction.from_kernel(bare, [of], ["c1"], "h1", 0) is None
    whole = reconstruction.links(states)[made.host_ifname]
    assert mac(whole.mac) == mac(made.mac)
    for networks in ([], [network("else", "10.2.0.0/24", routed=False)], [network("demo", "10.1.0.0/24", routed=True)]):
        assert reconstruction.from_kernel(whole, networks, ["c1"], "h1", 0) is None


def test_what_a_record_says_beyond_the_kernel_is_made_harmless() -> None:
    """Numbers that no kernel accepts, and an invalid name, come from a forged record."""
    of = network("demo", "10.1.0.0/24", routed=False)
    made = endpoint(of, "10.1.0.5")
    odd = msgspec.structs.replace(
        made, mtu=-1, path_mtu=1 << 40, metric=-5, name="a\x1b[2Jb", bandwidth=Bandwidth(ingress_rate=1 << 70)
    )
    assert reconstruction.believed(odd, of) == msgspec.structs.replace(made, name="")
    assert reconstruction.believed(msgspec.structs.replace(made, name="web", metric=2), of).name == "web"


def test_ports_that_lead_to_another_interface_of_the_container_are_its_own() -> None:
    """The second interface publishes, the first has the default route: both are what the kernel has."""
    of = network("demo", "10.1.0.0/24", routed=True)
    first = endpoint(of, "10.1.0.5")
    request = AttachRequest(id="c1", network="demo", ifname="eth1", ports=(Port("", 80, 80, "tcp"),))
    second = described(request, of, [prefix("10.1.0.6")], NETNS, "/run/netns/c1", 7, "h1")
    second = msgspec.structs.replace(second, metric=1)
    links = reconstruction.links(on_host(of, first, second))
    for one in (first, second):
        assert reconstruction.agrees(one, of, links[one.host_ifname])
    other = msgspec.structs.replace(second, ports=(Port("", 81, 80, "tcp"),))
    assert not reconstruction.agrees(other, of, links[second.host_ifname])
    found = reconstruction.from_kernel(links[first.host_ifname], [of], ["c1"], "h1", 0)
    assert found is not None
    assert found.ports == second.ports
