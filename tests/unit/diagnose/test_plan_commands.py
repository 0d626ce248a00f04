"""Plan: what is typed for each kind of state, and in which order."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.states.host import (
    UNREACHABLE_METRIC,
    Address,
    FdbEntry,
    ForwardAccept,
    LinkSysctl,
    Neighbour,
    NftChain,
    NftElement,
    NftExit,
    NftSet,
    NftTable,
    Route,
    State,
    Sysctl,
    TokenBucket,
    TrustedSource,
    TunnelExit,
    TunnelPrefix,
    Veth,
)
from linkspan.core.states.programs import File, Process
from linkspan.diagnose.plan.plan import commands, concerns, lines, ordered, why

PATHS = {7: "/run/netns/web", 8: "/proc/12/ns/net"}
GATEWAY = prefix("10.0.0.1").packed


CONTENTS = [b"one\ntwo 'three' $four\n", b"no newline", b"EOF\n", b"\x00\xff", b"", "é\n".encode()]


def typed(state: State) -> tuple[str, ...]:
    """Return the commands, namespace 7 being called web and 8 having no name."""
    return commands(state, PATHS.__getitem__)


@pytest.mark.parametrize(
    ("state", "command"),
    [
        (Sysctl("net/ipv4/ip_forward", "1"), "sysctl -w net/ipv4/ip_forward=1"),
        (
            LinkSysctl("net/ipv6/conf/eth0/accept_ra", "0", 8),
            "nsenter --net=/proc/12/ns/net sysctl -w net/ipv6/conf/eth0/accept_ra=0",
        ),
        (NftTable("inet", "t"), "nft 'add table inet t'"),
        (
            NftSet("inet", "t", "s", "ipv4_addr", interval=True),
            "nft 'add set inet t s { type ipv4_addr; flags interval; }'",
        ),
        (
            NftSet("inet", "t", "d", "ipv4_addr", dynamic=True, timeout=60),
            "nft 'add set inet t d { type ipv4_addr; size 65535; flags dynamic; timeout 60s; }'",
        ),
        (
            NftElement("inet", "t", "m", ("tcp", "80"), ("10.0.0.2", "8080")),
            "nft 'add element inet t m { tcp . 80 : 10.0.0.2 . 8080 }'",
        ),
        (
            NftExit("netdev", "t", "ends4_lsx64", ("10.0.0.2",), ("lsr1",)),
            "nft 'add element netdev t ends4_lsx64 { 10.0.0.2 : lsr1 }'",
        ),
        (
            Neighbour("lsx64", prefix("fd77::2").packed, bytes(5) + b"\2"),
            "ip neigh replace fd77::2 lladdr 00:00:00:00:00:02 dev lsx64 nud permanent",
        ),
        (
            FdbEntry("lsx64", bytes(5) + b"\2", GATEWAY),
            "bridge fdb replace 00:00:00:00:00:02 dev lsx64 dst 10.0.0.1 self permanent",
        ),
        (
            Route(prefix("10.2.0.0/24"), "lsx64", GATEWAY, prefix("10.1.0.0").packed, onlink=True),
            "ip -4 route replace 10.2.0.0/24 via 10.0.0.1 dev lsx64 onlink src 10.1.0.0 proto 76",
        ),
        (
            TunnelPrefix(prefix("10.2.0.0/24"), GATEWAY),
            """echo '10.2.0.0/24 10.0.0.1' >>"${STATE_DIR:-/var/lib/linkspan}"/ipip/table""",
        ),
        (
            TunnelExit(prefix("10.2.0.0/16"), GATEWAY),
            """echo '10.2.0.0/16 10.0.0.1' >>"${STATE_DIR:-/var/lib/linkspan}"/ipip/exits""",
        ),
        (Address("ls-demo", prefix("10.0.0.1/24")), "ip addr replace 10.0.0.1/24 dev ls-demo brd +"),
        (Address("eth0", prefix("10.0.0.2/32"), 7), "ip -n web addr replace 10.0.0.2/32 dev eth0"),
        (
            Address("eth0", prefix("fd00::2/64"), 8),
            "nsenter --net=/proc/12/ns/net ip addr replace fd00::2/64 dev eth0 nodad",
        ),
        (
            Route(prefix("0.0.0.0/0"), "eth0", GATEWAY, netns=7),
            "ip -n web -4 route replace default via 10.0.0.1 dev eth0 proto 76",
        ),
        (
            Route(prefix("fd00::/64"), metric=UNREACHABLE_METRIC),
            "ip -6 route replace unreachable fd00::/64 metric 4294967295 proto 76",
        ),
        (
            Route(prefix("10.1.0.0/16"), "eth0", b"", GATEWAY),
            "ip -4 route replace 10.1.0.0/16 dev eth0 src 10.0.0.1 proto 76",
        ),
        (
            TokenBucket("lsp1", 1000, 2048),
            "tc qdisc replace dev lsp1 root tbf rate 8000bit burst 2048b latency 25ms",
        ),
        (TrustedSource(prefix("10.0.0.0/24")), "firewall-cmd --zone=trusted --add-source=10.0.0.0/24"),
        (Process("dns", ("/usr/bin/dns", "-c", "a b")), "setsid --fork /usr/bin/dns -c 'a b' </dev/null"),
    ],
)
def test_a_state_is_one_command_that_people_know(state: State, command: str) -> None:
    """Namespaces with a name are entered by it, others by path; words are quoted for a shell."""
    assert typed(state) == (command,)


def test_a_veth_pair_is_born_with_its_peer_in_the_namespace() -> None:
    """Then it is marked as ours, plugged in with hairpin, and set up."""
    state = Veth("lsp1", b"\2\0\0\0\0\1", 1500, "ls-demo", 7, "eth0", hairpin=True)
    assert typed(state) == (
        "ip link add lsp1 mtu 1500 address 02:00:00:00:00:01 type veth peer name eth0 mtu 1500 netns web",
        "ip link property add dev lsp1 altname linkspan:7:eth0",
        "ip link set lsp1 master ls-demo",
        "bridge link set dev lsp1 hairpin on",
        "ip link set lsp1 up",
    )


def test_rules_in_anothers_chain_carry_our_comment() -> None:
    """One for each way, of the address family's own command."""
    first, second = typed(ForwardAccept("DOCKER-USER", prefix("fd00::/64")))
    assert first.startswith("ip6tables -w -I DOCKER-USER 1 -s fd00::/64 ")
    assert " -d fd00::/64 " in second
    assert "--comment 'linkspan: fd00::/64' -j ACCEPT" in first


@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_is_written_byte_for_byte(tmp_path: Path, content: bytes) -> None:
    """Readable text is shown, anything else is encoded; a shell that runs it writes the same file."""
    target = tmp_path / "folder with space" / "file"
    (command,) = typed(File(str(target), content, 0o640))
    subprocess.run(["sh", "-e"], input=command, text=True, check=True)
    assert target.read_bytes() == content
    assert target.stat().st_mode & 0o777 == 0o640


def test_what_others_stand_on_is_typed_first() -> None:
    """By rank; a chain after those it jumps to; a route by a gateway after the way to the gateway."""
    default = Route(prefix("0.0.0.0/0"), "eth0", GATEWAY, netns=7)
    link = Route(prefix("10.0.0.1/32"), "eth0", netns=7)
    base = NftChain("inet", "t", "base", "type filter hook input priority 0;", ("jump middle",))
    middle = NftChain("inet", "t", "middle", "", ("ip saddr 10.0.0.1 goto leaf",))
    leaf = NftChain("inet", "t", "leaf", "", ("drop",))
    table = NftTable("inet", "t")
    assert ordered([default, link, base, middle, leaf, table]) == [table, leaf, middle, base, link, default]


def test_chains_that_jump_to_each_other_are_all_typed() -> None:
    """Nft refuses such a loop itself; the plan shows it nevertheless."""
    one = NftChain("inet", "t", "one", "", ("jump one", "jump two"))
    two = NftChain("inet", "t", "two", "", ("jump one",))
    assert set(ordered([one, two])) == {one, two}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (("network", "demo"), "network demo"),
        (("attachment", "0123456789abcdef", "eth0"), "container 0123456789ab, interface eth0"),
        (("host", "firewall"), "this host, for all networks"),
    ],
)
def test_the_reason_names_what_it_is_for(source: tuple[str, ...], words: str) -> None:
    """In a few words, with an id no longer than people read."""
    assert why(source) == words


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (("host", "firewall"), True),
        (("network", "demo"), True),
        (("network", "other"), False),
        (("peer", "demo", "id2"), True),
        (("peer", "other", "demo"), False),
        (("names", "other", "demo"), True),
        (("names", "other"), False),
        (("attachment", "demo", "eth0"), False),
    ],
)
def test_the_plan_of_a_network_has_what_its_sources_say(source: tuple[str, ...], wanted: bool) -> None:
    """With what is the host's; whose a container is its source does not say."""
    assert concerns(source, "demo") == wanted


def test_each_line_says_for_whom_it_is_and_whether_it_is_there() -> None:
    """A command for each state, in the order in which they can be typed; in a migration with its reason."""
    link = Veth("lsr1", bytes(6), 1500, "", 7, "eth0")
    route = Route(prefix("10.0.0.5/32"), "lsr1")
    demo, web = ("network", "demo"), ("attachment", "web", "eth0")
    found = list(
        lines(
            [route, link],
            {link.key: [web], route.key: [demo, web]},
            {route.key},
            {route.key: "on the way to vxlan"},
            lambda number: PATHS[number],
            "/state",
        )
    )
    assert [line.kind for line in found] == ["Veth"] * (len(found) - 1) + ["Route"]
    assert {line.present for line in found[:-1]} == {True}
    assert not found[-1].present
    assert found[0].why.endswith(", for container web, interface eth0")
    assert found[-1].why.endswith(", for network demo and container web, interface eth0 (on the way to vxlan)")
