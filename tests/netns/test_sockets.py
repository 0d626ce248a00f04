from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from linkspan.core.errors import Invalid
from linkspan.kernel.probe.port_owners import first_free, holder, holders
from support.netns.machine_fixtures import inside

ME = f"process {os.getpid()} ("
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
V4, V6 = socket.AF_INET, socket.AF_INET6


def listener(protocol: str, family: int, address: str, port: int = 0, *, only: bool = True) -> socket.socket:
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    try:
        found = socket.socket(family, kind, 132 if protocol == "sctp" else 0)
    except OSError:
        pytest.skip(f"this kernel has no {protocol}")
    if family == V6:
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only))
    found.bind((address, port))
    if protocol != "udp":
        found.listen()
    return found


@PROTOCOLS
@pytest.mark.parametrize(
    ("family", "address", "asked", "held"),
    [
        (V4, "127.0.0.1", "", True),
        (V4, "127.0.0.1", "127.0.0.1", True),
        (V4, "127.0.0.1", "::1", False),
        (V4, "0.0.0.0", "192.0.2.7", True),
        (V6, "::1", "", True),
        (V6, "::1", "127.0.0.1", False),
        (V6, "::", "2001:db8::1", True),
    ],
)
def test_a_listener_is_named_where_addresses_meet(
    machine: str, protocol: str, family: int, address: str, asked: str, held: bool
) -> None:
    """Every address meets all of them."""
    add_addresses()
    with listener(protocol, family, address) as found:
        answer = holder(protocol, asked, found.getsockname()[1])
    assert answer.startswith(ME) if held else answer == ""


def add_addresses() -> None:
    """Give the machine the two addresses that are asked for besides its loopback's."""
    subprocess.run(["ip", "address", "add", "192.0.2.7/32", "dev", "lo"], check=True)
    subprocess.run(["ip", "address", "add", "2001:db8::1/128", "dev", "lo", "nodad"], check=True)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(("address", "family"), [("192.0.2.8", 4), ("2001:db8::8", 6)])
def test_an_address_that_the_host_does_not_have_is_refused_unless_it_may_come_later(
    machine: str, protocol: str, address: str, family: int
) -> None:
    """The kernel's own switch for addresses that come later, ip_nonlocal_bind, is the way to ask for one."""
    with pytest.raises(Invalid, match=f"at {address}: the host does not have this address") as refused:
        holder(protocol, address, 4711)
    setting = f"net.ipv{family}.ip_nonlocal_bind"
    assert f"sysctl -w {setting}=1" in refused.value.hint
    Path("/proc/sys", setting.replace(".", "/")).write_text("1", encoding="ascii")
    assert holder(protocol, address, 4711) == ""


@PROTOCOLS
def test_an_ipv6_listener_that_takes_ipv4_holds_both(machine: str, protocol: str) -> None:
    """Without IPV6_V6ONLY :: is IPv4's every address, too."""
    with listener(protocol, V6, "::", only=False) as found:
        port = found.getsockname()[1]
        for asked in ("", "127.0.0.1", "::1"):
            assert holder(protocol, asked, port).startswith(ME)


@PROTOCOLS
def test_a_free_port_is_held_by_nobody(machine: str, protocol: str) -> None:
    """Also right after its holder went, and whatever another protocol has there."""
    with listener("tcp", V4, "127.0.0.1") as other:
        port = other.getsockname()[1]
        if protocol != "tcp":
            assert holder(protocol, "", port) == ""
    assert holder(protocol, "", port) == ""


def test_time_wait_and_clients_are_not_in_the_way(machine: str) -> None:
    """A connection's end at the port does not hold it, while it lives or afterwards."""
    with listener("tcp", V4, "127.0.0.1") as server:
        client = socket.create_connection(server.getsockname())
        port = client.getsockname()[1]
        accepted, _ = server.accept()
        assert holder("tcp", "", port) == ""
        client.close()  # first, so that the client's side is the one in TIME_WAIT
        accepted.close()
        assert holder("tcp", "", port) == ""


def test_the_namespace_is_the_calling_thread_s(machine: str, container: str) -> None:
    """A listener in a container holds nothing of the host's."""
    with inside(container):
        found = listener("tcp", V4, "127.0.0.1")
        port = found.getsockname()[1]
        assert holder("tcp", "", port).startswith(ME)
    with found:
        assert holder("tcp", "", port) == ""


def test_several_ports_are_looked_up_together(machine: str) -> None:
    """Each that is held is named, and the first free one of a range is found behind them."""
    with listener("tcp", V4, "127.0.0.1", 7100), listener("tcp", V6, "::1", 7101):
        asked: list[tuple[str, str, int]] = [("tcp", "", port) for port in (7100, 7101, 7102)]
        found = holders(asked)
        assert set(found) == set(asked[:2])
        assert all(who.startswith(ME) for who in found.values())
        assert first_free(asked) == asked[2]
        assert first_free(asked[:2]) is None


def test_a_process_with_too_many_files_gets_an_error_and_goes_on(machine: str) -> None:
    """Libnftables waits by select(), which ends the process where its socket has a number above 1023."""
    code = f"""
import os, resource
from linkspan.core.errors import Unavailable
from linkspan.kernel.io.nftables import Nft
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
Nft().run("add table inet {machine}")
kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
try:
    Nft()
except Unavailable as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "libnftables works with less than 1024 only" in done.stdout


def test_a_context_that_is_closed_twice_harms_nobody(machine: str) -> None:
    """The others still work: libnftables by itself would free its memory twice, which ends the process."""
    code = f"""
from linkspan.kernel.io.nftables import Nft
first, second = Nft(), Nft()
first.run("add table inet {machine}")
first.close()
first.close()
print(second.text("list tables"))
second.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")[0]) == (0, f"table inet {machine}")
