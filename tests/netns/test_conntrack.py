from __future__ import annotations

import socket

import pytest

from linkspan.core.addresses import prefix
from linkspan.kernel.probe import conntrack
from linkspan.kernel.probe.conntrack import cut, flush
from support.netns.machine_fixtures import needs, run

CHAINS = """
table inet t {{
  chain raw {{ type filter hook output priority raw; {rule}
  }}
  chain tracks {{ type filter hook output priority 0; ct state new; }}
}}
"""


def entry(protocol: str, source: str, to: str, port: int, replier: str = "", seen: str = "") -> None:
    """Put an entry into the table, as if ``source`` had sent to ``to``.

    The target was translated to ``replier``, and the source to ``seen``.
    """
    state = {
        "tcp": ["--state", "ESTABLISHED"],
        "udp": [],
        "sctp": ["--state", "ESTABLISHED", "--orig-vtag", "1"],
    }
    extra = [*state[protocol], *(["--reply-vtag", "2"] if protocol == "sctp" else [])]
    run(
        *("conntrack", "-I", "-p", protocol, "-s", source, "-d", to, "--sport", "999", "--dport", str(port)),
        *("-r", replier or to, "-q", seen or source, "--reply-port-src", str(port), "--reply-port-dst", "999"),
        *("-t", "300", *extra),
    )


@pytest.fixture(params=["filtered", "whole"], autouse=True)
def dumps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel filter, or have the whole table dumped: which is cheaper depends on the table's size."""
    monkeypatch.setattr(conntrack, "ENTRY", 1 << 60 if request.param == "filtered" else 0)


def table() -> list[str]:
    lines = run("conntrack", "-L", "-f", "ipv4") + run("conntrack", "-L", "-f", "ipv6")
    return sorted(line for line in lines.splitlines() if "999" in line)


@pytest.mark.parametrize("protocol", ["udp", "tcp", "sctp"])
def test_a_mapping_s_entries_go_and_others_stay(machine: str, protocol: str) -> None:
    """By protocol and the port first sent to, for IPv4 and IPv6; a second flush finds none."""
    needs("conntrack")
    entry(protocol, "192.0.2.1", "192.0.2.9", 53, "10.99.1.2")
    entry(protocol, "2001:db8::1", "2001:db8::9", 53, "fd99::2")
    entry(protocol, "192.0.2.1", "192.0.2.9", 54)
    entry("udp" if protocol == "tcp" else "tcp", "192.0.2.1", "192.0.2.9", 53)
    assert len(table()) == 4
    assert flush([(protocol, 53)], []) == 2
    left = table()
    assert len(left) == 2
    assert not any(line.startswith(protocol) and "dport=53 " in line for line in left)
    assert flush([(protocol, 53)], []) == 0


@pytest.mark.parametrize(
    ("address", "other", "third"),
    [
        ("10.99.1.2", "192.0.2.1", "192.0.2.9"),
        ("fd99::2", "2001:db8::1", "2001:db8::9"),
    ],
)
def test_an_address_s_entries_go_in_each_direction(
    machine: str, address: str, other: str, third: str
) -> None:
    """As the sender, as the one sent to, and behind a translation; its neighbours' entries stay."""
    needs("conntrack")
    entry("udp", address, other, 1)
    entry("udp", other, address, 2)
    entry("udp", other, third, 3, address)
    entry("udp", other, third, 4)
    assert len(table()) == 4
    assert flush([], [prefix(address)]) == 3
    (left,) = table()
    assert "dport=4 " in left


def test_many_are_flushed_at_once(machine: str) -> None:
    """Ports and addresses of both families in one call."""
    needs("conntrack")
    for number, (source, target) in enumerate(
        (
            ("192.0.2.1", "192.0.2.9"),
            ("10.99.1.2", "192.0.2.9"),
            ("2001:db8::1", "fd99::2"),
            ("2001:db8::1", "2001:db8::9"),
        )
    ):
        entry("udp", source, target, 50 + number)
    assert flush([("udp", 50), ("sctp", 53), ("tcp", 53)], [prefix("10.99.1.2"), prefix("fd99::2")]) == 3
    (left,) = table()
    assert "dport=53 " in left


@pytest.mark.parametrize(
    ("address", "other", "server"), [("10.99.1.2", "10.99.1.3", "10.99.0.1"), ("fd99::2", "fd99::3", "fd99::1")]
)
def test_what_an_address_sent_to_a_port_goes(machine: str, address: str, other: str, server: str) -> None:
    """Another address's flows to that port stay, as do its own to other ports and by other protocols."""
    needs("conntrack")
    entry("udp", other, server, 53)
    for protocol, port in (("udp", 53), ("udp", 54), ("tcp", 53)):
        entry(protocol, address, server, port)
    assert len(table()) == 4
    assert flush(flows=[(prefix(address), "udp", 53)]) == 1
    assert len(table()) == 3
    assert not any("udp" in line and f"src={address} " in line and "dport=53 " in line for line in table())
    assert flush(flows=[(prefix(address), protocol, 53) for protocol in ("udp", "tcp")]) == 1


@pytest.mark.parametrize(
    ("address", "other", "seen"),
    [("10.99.1.2", "192.0.2.9", "192.0.2.100"), ("fd99::2", "2001:db8::9", "2001:db8::100")],
)
def test_a_flow_tells_what_its_source_is_replaced_by(machine: str, address: str, other: str, seen: str) -> None:
    """Nothing, where the answers go to the source itself; a translated target changes nothing about that."""
    needs("conntrack")
    entry("udp", address, other, 1, seen=seen)
    entry("udp", address, other, 2)
    entry("udp", address, seen, 3, other)
    assert cut(lambda flow: flow.translated == prefix(seen)) == 1
    assert cut(lambda flow: flow.translated is None) == 2


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("tracked", [True, False])
def test_who_began_a_connection_is_not_known_if_its_beginning_was_not_tracked(
    machine: str, address: str, tracked: bool
) -> None:
    """The server's packet is the first one that is tracked, so the server seems to be the client."""
    run("ip", "link", "set", "lo", "up")
    run("nft", CHAINS.format(rule="" if tracked else "notrack"))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        with socket.create_connection((address, port), 10) as client, server.accept()[0] as accepted:
            run("nft", "flush chain inet t raw")
            accepted.send(b".")
            assert client.recv(1) == b"."
            own = client.getsockname()[1]
            assert conntrack.count(lambda flow: flow.port == own) == (0 if tracked else 1)
            assert cut(lambda flow: flow.port == port) == 1
