"""Zone: the servers' files about containers, and their states."""

from __future__ import annotations

import msgspec
import pytest

from linkspan.core import dns_names
from linkspan.core.model import Endpoint, Network, Port
from linkspan.core.ruleset import VIEW_PORTS
from linkspan.core.states.host import NftElement
from linkspan.core.states.programs import Dnsmasq, File, Process
from linkspan.dns import zone
from linkspan.dns.zone import Server
from linkspan.kernel.probe.dnsmasq import upstream

DEMO = Network(
    name="demo",
    pools=("10.244.0.0/16", "fd00:244::/48"),
    gateways=("10.244.0.1", "fd00:244::1"),
    subnet_len={"4": 24, "6": 64},
    backend="vxlan",
)
PROGRAM = Dnsmasq("/usr/sbin/dnsmasq", "dnsmasq", "/run/linkspan/names")
LONG_ID = "0123456789abcdef" * 4


def endpoint(
    name: str = "", id_: str = "c1", aliases: str = "", addresses: tuple[str, ...] = ("10.244.1.2/32",)
) -> Endpoint:
    """Return an endpoint of network demo."""
    labels = {"aliases": aliases} if aliases else {}
    return Endpoint(id=id_, ifname="eth0", network="demo", host="h1", name=name, addresses=addresses, labels=labels)


def said(name: str) -> str:
    """Return all that a name is answered as on network demo, what addresses lead back to first."""
    return f"{name}.demo {name}.demo.internal {name}"


@pytest.mark.parametrize(
    ("made", "given"),
    [
        (endpoint("web", LONG_ID), ("web", LONG_ID[:12])),
        (endpoint("", LONG_ID), (LONG_ID[:12],)),
        (endpoint("", "default-web"), ("web", "default-web")),
        (endpoint("shop_web_1", LONG_ID, "web, www,web"), ("shop_web_1", "web", "www", LONG_ID[:12])),
        (endpoint("Web"), ("web", "c1")),
        (endpoint("my web", aliases="ünter,-x,a..b,.,localhost,x.localhost,ok"), ("ok", "c1")),
        (endpoint("x" * 64), ("c1",)),
        (endpoint("x" * 63), ("x" * 63, "c1")),
        (endpoint("web\n10.0.0.1 evil", aliases="a b,c\td,e#f"), ("c1",)),
    ],
    ids=["name", "id", "ctr", "aliases", "capitals", "no-names", "too-long", "long", "injection"],
)
def test_an_endpoint_has_these_names(made: Endpoint, given: tuple[str, ...]) -> None:
    """Container, aliases and short id, in small letters; what DNS could not say is left out."""
    assert zone.named(made).names == given


def test_what_cannot_be_said_is_told() -> None:
    """As a warning, with the name as given."""
    assert dns_names.unspeakable(endpoint("my web", aliases="ok,a..b")) == ("my web", "a..b")


def test_a_file_has_each_address_with_its_names() -> None:
    """The first name is the whole one, which the address leads back to; the order is always the same."""
    two = endpoint("web", aliases="api", addresses=("10.244.1.2/32", "fd00:244::2/128"))
    every = [zone.named(two), zone.named(endpoint("db", "c2", addresses=("10.244.1.3/32",)))]
    assert zone.hosts(DEMO, every).decode().splitlines() == [
        f"10.244.1.2 {said('web')} {said('api')} {said('c1')}",
        f"10.244.1.3 {said('db')} {said('c2')}",
        f"fd00:244::2 {said('web')} {said('api')} {said('c1')}",
    ]
    assert zone.hosts(DEMO, reversed(every)) == zone.hosts(DEMO, every)


def test_a_name_with_a_dot_is_said_in_the_network_s_domain_alone() -> None:
    """No container of the network can be example.com for the others."""
    (line,) = zone.hosts(DEMO, [zone.named(endpoint("example.com"))]).decode().splitlines()
    assert line == f"10.244.1.2 example.com.demo example.com.demo.internal {said('c1')}"


def test_a_name_too_long_for_a_domain_is_said_without_it() -> None:
    """As long as DNS has it."""
    long = ".".join(["x" * 60] * 4) + "y"
    (line,) = zone.hosts(DEMO, [zone.named(endpoint(long))]).decode().splitlines()
    assert line == f"10.244.1.2 {long}.demo {said('c1')}"


def test_a_network_whose_name_is_no_domain_has_bare_names() -> None:
    """Its file has bare names alone, and its server has no domain."""
    odd = msgspec.structs.replace(DEMO, name="x" * 70)
    assert zone.hosts(odd, [zone.named(endpoint("web"))]) == b"10.244.1.2 web c1\n"
    (server,) = [s for s in zone.states(odd, Server(PROGRAM), b"", b"", odd.prefixes) if isinstance(s, Process)]
    assert [word for word in server.argv if word.startswith("--local=")] == ["--local=//"]


def test_states_of_a_server() -> None:
    """Three files, one process that reads them at SIGHUP, and who may ask it."""
    server_ = Server(PROGRAM, ("192.0.2.53",), ("192.0.2.53",))
    found = list(zone.states(DEMO, server_, b"own\n", b"others\n", DEMO.prefixes))
    files = {s.path.rpartition("/")[2]: s.content for s in found if isinstance(s, File)}
    assert files == {"here": b"own\n", "elsewhere": b"others\n", "resolvers": b"server=192.0.2.53\n"}
    (server,) = [s for s in found if isinstance(s, Process)]
    assert server.hup
    assert {s.path for s in found if isinstance(s, File)} == set(server.files)
    assert {"--listen-address=10.244.0.1", "--listen-address=fd00:244::1"} <= set(server.argv)
    assert {"--local=//", "--local=/demo/", "--local=/demo.internal/"} <= set(server.argv)
    assert "--rev-server=10.244.0.0/16" in server.argv
    assert "--dns-loop-detect" in server.argv
    elements = {(s.set, *s.parts, *s.data) for s in found if isinstance(s, NftElement)}
    assert ("asking4", "10.244.0.0/16", "10.244.0.1") in elements
    assert ("server_of6", "fd00:244::/48", "fd00:244::1") in elements
    assert ("resolvers4", "192.0.2.53") in elements


BACK = msgspec.structs.replace(DEMO, name="back", pools=("10.245.0.0/16",), gateways=("10.245.0.1",), internal=True)
VIEW = ("back", "demo")


def placed(network: str, address: str, netns: int, id_: str = "c1") -> Endpoint:
    """Return an endpoint in a namespace."""
    return Endpoint(id=id_, ifname=network, network=network, host="h1", netns=netns, addresses=(address,))


def test_containers_are_in_views_by_the_networks_that_they_are_in() -> None:
    """One for each combination, with the endpoints of all its containers; nobody in one network is in any."""
    both = [placed("demo", "10.244.1.2/32", 7), placed("back", "10.245.0.2/32", 7)]
    more = [placed("back", "10.245.0.3/32", 8, "c2"), placed("demo", "10.244.1.3/32", 8, "c2")]
    three = [placed(network, "10.244.1.4/32", 9, "c3") for network in ("other", *VIEW)]
    alone = [placed("back", "10.245.0.5/32", 10, "c4"), placed("back", "10.245.0.6/32", 10, "c4")]
    unknown = [placed("demo", "10.244.1.7/32", 0, "c5"), placed("back", "10.245.0.7/32", 0, "c5")]
    every = [*both, *more, *three, *alone, *unknown]
    assert zone.views(every, {"demo", "back", "other"}) == {VIEW: [*both, *more], ("back", "demo", "other"): three}
    assert zone.views(three, VIEW) == {VIEW: three[1:]}, "a network without a server here has no names"
    assert zone.views(every, {"back"}) == {}
    dead = [msgspec.structs.replace(both[0], netns_cookie=8)]
    assert zone.views([*dead, both[1]], VIEW) == {}, "a namespace that had the inode before is another container's"


def test_views_have_ports_of_their_own() -> None:
    """The same for the same combinations; two that want one port get two, in whatever order they come."""
    many = [("a", f"n{number}") for number in range(len(VIEW_PORTS) // 2)]
    found = zone.ports(many)
    assert len(set(found.values())) == len(many)
    assert set(found.values()) <= set(VIEW_PORTS)
    assert zone.ports(reversed(many)) == found
    assert zone.ports([VIEW, *many[:1]])[VIEW] == zone.ports([VIEW])[VIEW]
    assert len(zone.ports(("a", f"n{number}") for number in range(len(VIEW_PORTS) + 1))) == len(VIEW_PORTS)


def test_states_of_a_view() -> None:
    """A process that reads the files of both networks, at a port of its own, and the redirect of each address."""
    six = msgspec.structs.replace(placed("demo", "fd00:244::2/128", 7), ifname="eth9")
    askers = [placed("demo", "10.244.1.2/32", 7), placed("back", "10.245.0.2/32", 7), six]
    server_ = Server(PROGRAM, ("192.0.2.53",), ("192.0.2.53",), nowhere=zone.nowhere([DEMO, BACK]))
    networks, used = [BACK, DEMO], [*BACK.prefixes, *DEMO.prefixes]
    found = [*zone.view(networks, server_, used, 61500), *zone.leads(networks, used, 61500, askers)]
    (file,) = [s for s in found if isinstance(s, File)]
    (server,) = [s for s in found if isinstance(s, Process)]
    assert server.name == "names-back+demo"
    folder = PROGRAM.folder
    read = [f"{folder}/{network}/{name}" for network in VIEW for name in ("here", "elsewhere")]
    assert server.files == (*read, f"{folder}/back+demo/resolvers")
    assert {f"--addn-hosts={path}" for path in read} <= set(server.argv)
    assert {"--port=61500", "--listen-address=10.245.0.1", "--listen-address=fd00:244::1"} <= set(server.argv)
    assert {"--local=/back/", "--local=/demo.internal/", "--rev-server=10.245.0.0/16"} <= set(server.argv)
    assert file.content.startswith(b"server=192.0.2.53\n"), "demo is not internal"
    elements = {(s.set, *s.parts, *s.data) for s in found if isinstance(s, NftElement)}
    assert elements == {
        *(("views4", gateway, "61500") for gateway in ("10.244.0.1", "10.245.0.1")),
        ("views6", "fd00:244::1", "61500"),
        ("view_of4", "10.244.1.2", "10.244.0.1", "61500"),
        ("view_of4", "10.245.0.2", "10.245.0.1", "61500"),
        ("view_of6", "fd00:244::2", "fd00:244::1", "61500"),
        ("viewing4", "10.244.1.2", "10.244.0.1", "61500"),
        ("viewing4", "10.245.0.2", "10.245.0.1", "61500"),
        ("viewing6", "fd00:244::2", "fd00:244::1", "61500"),
    }


def test_a_view_of_internal_networks_asks_nobody() -> None:
    """Its containers resolve no outside names; one that is also in an ordinary network does."""
    inner = msgspec.structs.replace(DEMO, internal=True)
    server = Server(PROGRAM, ("192.0.2.53",), ("192.0.2.53",))
    for network, content in ((inner, b""), (DEMO, b"server=192.0.2.53\n")):
        (file,) = [s for s in zone.view([BACK, network], server, (), 61500) if isinstance(s, File)]
        assert file.content == content


def test_a_view_of_many_networks_has_a_name_that_files_may_have() -> None:
    """A file's name has 255 characters at most."""
    networks = tuple("x" * 100 + str(number) for number in range(9))
    assert len(zone.process(networks)) < 100
    assert zone.process(networks) != zone.process(networks[1:])
    assert zone.process(VIEW) == "names-back+demo"


def test_names_of_another_network_are_asked_nowhere() -> None:
    """The host's resolver may forward to that network's server, which takes the host for the client."""
    other, odd = (msgspec.structs.replace(DEMO, name=name) for name in ("Other", "x" * 70))
    server = Server(PROGRAM, ("192.0.2.53",), nowhere=zone.nowhere([other, odd, DEMO]))
    contents = [s.content for s in zone.states(DEMO, server, b"", b"", DEMO.prefixes) if isinstance(s, File)]
    assert contents[2] == b"server=192.0.2.53\nserver=/demo.internal/\nserver=/other.internal/\n"


def test_who_answers_for_the_host_is_not_led_to_its_server() -> None:
    """A container that publishes port 53 may be the host's resolver: what it asks would come back to it."""
    ports = (Port("192.0.2.1", 53, 5353, "udp"),)
    dns, web = (
        msgspec.structs.replace(endpoint("dns"), ports=ports),
        msgspec.structs.replace(endpoint("web"), ports=(Port("", 80, 53, "tcp"),)),
    )
    assert zone.forwarders([dns, web]) == ("10.244.1.2",)
    found = zone.states(DEMO, Server(PROGRAM, forwarders=("10.244.1.2", "fd00:244::2")), b"", b"", DEMO.prefixes)
    elements = {(s.set, *s.parts) for s in found if isinstance(s, NftElement)}
    assert {("forwarders4", "10.244.1.2"), ("forwarders6", "fd00:244::2")} <= elements


def test_an_internal_network_asks_nobody() -> None:
    """Outside names could carry data out; questions to the host's resolvers still reach the network's server."""
    inner = msgspec.structs.replace(DEMO, internal=True)
    server = Server(PROGRAM, ("192.0.2.53",), ("192.0.2.53",), nowhere=zone.nowhere([DEMO]))
    found = list(zone.states(inner, server, b"", b"", inner.prefixes))
    assert [s.content for s in found if isinstance(s, File)] == [b"", b"", b""]
    assert any(isinstance(s, NftElement) and s.set == "resolvers4" for s in found)


def test_a_gateway_that_all_networks_share_has_no_server() -> None:
    """Two networks' servers could not both listen there."""
    small = msgspec.structs.replace(DEMO, pools=("192.0.2.4/31",), gateways=("169.254.1.1",))
    assert zone.served(small) == ()


def test_resolvers_of_the_host() -> None:
    """In order, each once, without our own addresses (a loop), and without words that are no address."""
    text = "# x\nnameserver 192.0.2.53\nNAMESERVER 1.1.1.1\nnameserver 10.244.0.1\nnameserver 192.0.2.53\nsearch a\n"
    text += "nameserver fe80::53%eth0\nnameserver 2001:DB8:0::53\nnameserver bad\nnameserver\nnameserver x%/../y\n"
    assert upstream(text, {"10.244.0.1"}) == ("192.0.2.53", "fe80::53%eth0", "2001:db8::53")
    assert upstream("nameserver ::FFFF:0:192.0.2.1\n", ()) == ("::ffff:0:c000:201",), "translated, and not mapped"


@pytest.mark.parametrize("written", ["10.244.0.1", "::ffff:10.244.0.1", "FD00:0244:0:0::1", "fd00:244:0:0:0:0:0:1"])
def test_our_gateway_is_no_resolver_however_it_is_written(written: str) -> None:
    """The server would ask itself."""
    assert upstream(f"nameserver {written}\n", {"10.244.0.1", "fd00:244::1"}) == ()
