"""Places of a trace: the endpoint that a name means."""

from __future__ import annotations

from typing import Any, cast

import pytest

from linkspan.core.errors import Conflict, Invalid, NotFound
from linkspan.core.model import Endpoint, Network
from linkspan.diagnose.trace import between_hosts
from linkspan.diagnose.trace.hops import Map, Other
from linkspan.diagnose.trace.packet import Packet
from linkspan.diagnose.trace.parts import Entry
from linkspan.diagnose.trace.trace import chosen, place
from support.diagnose.empty_host import EmptyHost

ID = "0123456789abcdef" * 4


def network(name: str, number: int) -> Network:
    """Describe a network."""
    return Network(
        name=name,
        pools=(f"10.{number}.0.0/16",),
        gateways=(f"10.{number}.0.1",),
        subnet_len={"4": 24},
        backend="vxlan",
    )


def endpoint(network: str, address: str, name: str, aliases: str = "", id_: str = ID) -> Endpoint:
    """Describe an endpoint."""
    return Endpoint(
        id=id_, ifname="eth0", network=network, host="h1", name=name, addresses=(f"{address}/32",),
        labels={"aliases": aliases} if aliases else {},
    )  # fmt: skip


DB = endpoint("back", "10.2.0.2", "shop-db-1", "db,Store")
WEB = endpoint("front", "10.1.0.2", "shop-web-1", "web", "w1")
KNOWN = Map(
    "h1",
    (
        WEB,
        endpoint("back", "10.2.0.3", "shop-web-1", "web", "w1"),
        endpoint("back", "10.2.0.4", "exact", "", "e1"),
        endpoint("back", "10.2.0.5", "other", "exact", "e2"),
    ),
    {"front": network("front", 1), "back": network("back", 2)},
    others={"id2": Other("h2", {}, (DB,))},
)


def found(text: str) -> tuple[str, str]:
    """Return whom a name means, and on which host."""
    place_ = place(text, KNOWN, cast("Any", None))
    return place_.name, place_.host


@pytest.mark.parametrize(
    "text",
    [
        "db",
        "DB",
        "db.back",
        "db.back.internal",
        "db.back.internal.",
        "store",
        "db@back",
        ID[:12],
        "shop-db-1",
    ],
)
def test_a_name_that_dns_answers_is_known(text: str) -> None:
    """Of containers on other hosts, too: what works in the application is what a user types here."""
    assert found(text) == ("shop-db-1@back", "id2")


def test_a_network_s_name_tells_interfaces_of_one_container_apart() -> None:
    """As the plain name does, an alias of a container in two networks means either."""
    with pytest.raises(Conflict, match=r"shop-web-1@front .*shop-web-1@back"):
        found("web")
    assert found("web.front") == found("web@front") == ("shop-web-1@front", "")


@pytest.mark.parametrize("text", ["db.front", "db@front", "db.internal", "nobody", "a b"])
def test_a_name_that_dns_does_not_answer_is_not_known(text: str) -> None:
    """A name of another network, and a part of a name, match no endpoint."""
    with pytest.raises(NotFound, match="nothing has the name"):
        found(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("h2", "host:h2 is the host"),
        ("exakt", "did you mean exact?"),
        ("exact:80", "to ask for a port: linkspan trace ... exact --port 80"),
        ("nobody", "`linkspan endpoint list` shows all; a host is host:NAME"),
    ],
)
def test_a_word_that_names_nothing_gets_the_fix(text: str, hint: str) -> None:
    """A host's name, a typo and a port beside the name each get what to type instead."""
    with pytest.raises(NotFound) as missing:
        found(text)
    assert missing.value.hint == hint


def test_an_id_tells_containers_with_one_name_apart() -> None:
    """An id means its container alone, also if another one has it for a name; the error says to give an id."""
    twins = (endpoint("back", "10.2.0.6", "blue", "", "blue"), endpoint("back", "10.2.0.7", "blue", "", "red"))
    same = (*twins[1:], endpoint("back", "10.2.0.8", "blue", "", "green"))
    networks = {"back": network("back", 2)}
    asked = cast("Any", None)
    assert place("blue", Map("h1", twins, networks), asked).addresses == (bytes([10, 2, 0, 6]),)
    with pytest.raises(Conflict) as several:
        place("blue", Map("h1", same, networks), asked)
    assert several.value.hint == "give an id, or an address"


def test_a_hop_bears_the_network_of_its_interface() -> None:
    """Of two containers with one name, one in two networks, each hop says which network it is in."""
    mine = [
        Endpoint(id="w1", ifname=f"eth{n}", network=name, host="h1", name="web", netns=1)
        for n, name in enumerate(("front", "back"))
    ]
    other = Endpoint(id="w2", ifname="eth0", network="back", host="h1", name="web", netns=2)
    known = Map("h1", (*mine, other), {})
    assert [known.name(1, "eth1"), known.name(1, "eth0"), known.name(1)] == ["web@back", "web@front", "web@front"]


def test_a_source_outside_to_which_no_route_leads_is_named() -> None:
    """Nobody knows its link, and no answer goes back: that is said, and no link without a name."""
    packet = Packet(bytes([198, 18, 0, 1]), bytes([10, 2, 0, 4]), "icmp")
    part = between_hosts.part(EmptyHost(), KNOWN, Entry(packet))
    assert part.broken.startswith("host has no route to 198.18.0.1")


def test_a_host_without_a_route_to_a_container_is_told_why() -> None:
    """It takes no part in the container's network: this is not a question of address families."""
    source, target = (place(text, KNOWN, EmptyHost()) for text in ("host:", "shop-db-1"))
    for ends in ((source, target), (target, source)):
        with pytest.raises(Invalid) as refused:
            chosen(EmptyHost(), KNOWN, *ends, (0, "icmp"))
        assert refused.value.message == "host:h1 has no route to shop-db-1@back"
        assert "its setting `networks` has back" in refused.value.hint


def test_a_container_s_own_name_comes_first() -> None:
    """An equal alias of another container does not make the name ambiguous."""
    assert found("exact") == ("exact@back", "")


def test_a_host_that_does_not_exist_is_named_with_the_one_probably_meant() -> None:
    """The error offers the similar host's name, as `linkspan host show` does."""
    with pytest.raises(NotFound) as missing:
        found("host:h22")
    assert missing.value.told == "host 'h22' does not exist (there are: h1, h2); did you mean h2?"
