"""Endpoints whose interface a later plugin of a CNI chain has changed: their MTU, and MACs beside theirs."""

from __future__ import annotations

import contextlib

import pytest
from msgspec.structs import replace

from linkspan.backends import backend
from linkspan.core.addresses import derived_mac, mac_text, prefix
from linkspan.core.errors import Conflict
from linkspan.core.model import AttachRequest, Endpoint, Migration, Network
from linkspan.core.states.host import NftElement
from linkspan.endpoints.build import described, resized, tuned
from linkspan.endpoints.tuning import refuse_taken

NETWORK = Network(
    name="demo",
    pools=("10.244.0.0/24", "fd00:244::/64"),
    subnet_len={"4": 24, "6": 64},
    backend="bridge",
    gateways=("10.244.0.1/24", "fd00:244::1/64"),
)
REQUEST = AttachRequest(id="web", network="demo", ifname="eth0")
ADDRESSES = [prefix("10.244.0.2").single(), prefix("fd00:244::2").single()]
OTHER = "02:11:22:33:44:55"


def made(network: Network = NETWORK, taken: tuple[str, ...] = ()) -> Endpoint:
    """Return the endpoint of a container in namespace 7."""
    return described(REQUEST, network, ADDRESSES, 7, "/run/netns/web", 1, "h1", "", taken)


@pytest.mark.parametrize(("given", "kept"), [(1400, 1400), (1500, 1500), (9000, 1500)])
def test_an_mtu_is_kept_as_far_as_the_network_carries_it(given: int, kept: int) -> None:
    """A lesser one is the interface's from then on; a larger one would only be dropped on the way."""
    assert tuned(NETWORK, made(), OTHER, given).mtu == kept


def test_a_lesser_mtu_outlasts_changes_of_the_networks() -> None:
    """It follows a network that becomes smaller, is not raised with one that grows, and can be taken back."""
    endpoint = tuned(NETWORK, made(), OTHER, 1400)
    assert resized(replace(NETWORK, mtu=1300), endpoint).mtu == 1300
    assert resized(replace(NETWORK, mtu=9000), endpoint).mtu == 1400
    back = tuned(NETWORK, endpoint, OTHER, 1500)
    assert resized(replace(NETWORK, mtu=9000), back).mtu == 9000


def test_a_migrations_lesser_way_still_limits_what_is_sent() -> None:
    """The routes' limit exists if it is smaller than the interface's MTU, and only then."""
    moving = replace(NETWORK, migration=Migration(backend="vxlan", mtu=1450, number=1))
    assert (resized(moving, made()).mtu, resized(moving, made()).path_mtu) == (1500, 1450)
    endpoint = tuned(moving, made(), OTHER, 1400)
    assert (endpoint.mtu, endpoint.path_mtu) == (1400, 0)


def test_the_guard_knows_the_new_mac_and_both_link_local_addresses() -> None:
    """The kernel keeps the link-local address that it made of the first MAC."""
    first = made()
    endpoint = tuned(NETWORK, tuned(NETWORK, first, "02:00:00:00:00:09", 1500), OTHER, 1500)
    assert (endpoint.mac, endpoint.born_mac) == (OTHER, first.mac)
    states = list(backend("bridge").endpoint(NETWORK, endpoint))
    guard = [state.parts for state in states if isinstance(state, NftElement) and state.set == "senders6"]
    assert {parts[1] for parts in guard} == {OTHER}
    assert len({parts[2] for parts in guard if parts[2].startswith("fe80::")}) == 2


def test_a_mac_that_a_container_has_given_itself_is_derived_for_nobody() -> None:
    """An address always gives the same MAC, unless that MAC is in use."""
    usual = mac_text(derived_mac("demo", "10.244.0.2"))
    assert made().mac == usual
    assert made(taken=(usual,)).mac not in (usual, made(taken=(usual, made(taken=(usual,)).mac)).mac)


BRIDGED = replace(NETWORK, name="br2", pools=("10.245.0.0/24", "fd00:245::/64"), gateways=("10.245.0.1/24",))


@pytest.mark.parametrize(
    ("network", "free"),
    [
        (BRIDGED, False),
        (replace(BRIDGED, pools=("10.245.0.0/24",)), True),
        (replace(BRIDGED, backend="host-gw"), True),
        (NETWORK, False),
    ],
)
def test_one_mac_on_two_bridges_with_ipv6_is_refused(network: Network, free: bool) -> None:
    """Policies would know two containers by one link-local address; its first MAC's is an endpoint's, too."""
    holder = replace(made(), host_ifname="lsp1", mac="02:00:00:00:00:01", born_mac=OTHER)
    tuned_one = replace(holder, id="other", network=network.name, host_ifname="lsp2", mac="02:00:00:00:00:02")
    refuse_taken(network, tuned_one, OTHER, [tuned_one])
    with contextlib.nullcontext() if free else pytest.raises(Conflict, match="belongs to"):
        refuse_taken(network, tuned_one, OTHER, [tuned_one, holder])
