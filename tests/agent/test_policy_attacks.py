"""Attacks on policies: a forbidden container tries another address, fragments, options, and flows that others began.

The attacker is z-b. Policies let z-a in at x-b's port 80, and z-b nowhere.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.agent.agent_host import run
from support.agent.stage import FAMILIES
from support.agent.traffic import Capture, answers, asked, capturing, inside, serving
from support.agent.yard import Yard, yard_in
from support.polling import until

ONLY_A = "policy: only-a\nselect: {name: x-b}\ningress:\n- from: [{labels: {pod: a}}]\n  ports: [80/tcp, 80/udp]\n"
MARK = b"linkspan-attack-"


@pytest.fixture(scope="module", params=["routed", "bridged"])
def yard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """Return the host of this file's tests."""
    with yard_in(tmp_path_factory.mktemp("attacks"), request.param) as made:
        yield made


@pytest.fixture(autouse=True)
def _only_a(yard: Yard) -> Iterator[None]:
    yard.apply(ONLY_A)
    yield
    yard.apply("")


@contextlib.contextmanager
def _seen(yard: Yard) -> Iterator[Capture]:
    """Give a capture of what x-b gets."""
    with capturing(yard.netns["x-b"], "eth0") as capture:
        yield capture


def _datagram(yard: Yard, name: str, family: int, port: int, words: bytes, *options: tuple[int, int, bytes]) -> None:
    """Send a datagram to x-b from a container, with options of its socket."""
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    with inside(yard.netns[name]), socket.socket(kind, socket.SOCK_DGRAM) as client:
        for option in options:
            client.setsockopt(*option)
        with contextlib.suppress(OSError):  # an earlier one was refused
            client.sendto(words, (yard.ips["x-b"][family], port))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_address_of_an_allowed_container_opens_nothing(yard: Yard, family: int) -> None:
    """Beside its own address, and while its owner has it."""
    stolen, length = yard.ips["z-a"][family], 32 if family == 4 else 128
    options = ["nodad"] if family == 6 else []
    run("ip", "addr", "add", f"{stolen}/{length}", "dev", "eth0", *options, netns=yard.netns["z-b"])
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with _seen(yard) as seen, inside(yard.netns["z-b"]):
                with socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind) as client:
                    client.bind((stolen, 4000))
                    client.settimeout(0.3)
                    with contextlib.suppress(OSError):
                        client.connect((yard.ips["x-b"][family], 80))
                        client.send(MARK)
                assert not [one for one in seen.frames() if struct.pack("!HH", 4000, 80) in one]
    finally:
        run("ip", "addr", "del", f"{stolen}/{length}", "dev", "eth0", netns=yard.netns["z-b"])
    assert answers(yard.netns["z-a"], yard.ips["x-b"][family], 80)


Options = tuple[tuple[int, int, bytes], ...]


def _only_the_allowed_comes(yard: Yard, family: int, options: Options = (), times: int = 1) -> None:
    """Send the same from z-a and z-b to both ports; nothing but z-a's to port 80 comes."""
    ends = itertools.product(("z-b", "z-a"), (81, 80))
    words = {(name, port): f"{MARK.decode()}{name}-{port}".encode() * times for name, port in ends}
    allowed = words.pop(("z-a", 80))
    found: list[bytes] = []
    with capturing(yard.netns["x-b"], "eth0") as seen:
        for (name, port), said in words.items():
            _datagram(yard, name, family, port, said, *options)

        def comes() -> bool:
            _datagram(yard, "z-a", family, 80, allowed, *options)
            found.extend(seen.frames())
            return any(allowed[:22] in one for one in found)

        until(comes, "the allowed one comes")
    assert not [one for one in found if any(said[:22] in one for said in words.values())]


@pytest.mark.parametrize("family", FAMILIES)
def test_fragments_are_judged_as_what_they_are_together(yard: Yard, family: int) -> None:
    """A datagram of several fragments comes from whom it may, at the port where it may, and else no part of it."""
    _only_the_allowed_comes(yard, family, times=200)


def _fragment(source: str, target: str, offset: int, more: bool, body: bytes) -> bytes:
    """Return an IPv4 packet that is a part of a datagram; ``offset`` in bytes."""
    word = (0x2000 if more else 0) | offset >> 3
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 7, word, 64, socket.IPPROTO_UDP, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(target) + body


def test_a_later_fragment_does_not_change_the_port(yard: Yard) -> None:
    """The first one asks for the open port; a second one that lies over it has another one. z-a may not, either."""
    source, target = yard.ips["z-a"][4], yard.ips["x-b"][4]
    length = 8 + len(MARK)
    opened, closed = (struct.pack("!HHHH", 4001, port, length, 0) + MARK for port in (80, 81))
    with _seen(yard) as seen, inside(yard.netns["z-a"]):
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for first, second in ((opened, closed), (closed, opened)):
                raw.sendto(_fragment(source, target, 0, True, first[:16]), (target, 0))
                raw.sendto(_fragment(source, target, 0, True, second[:16]), (target, 0))
                raw.sendto(_fragment(source, target, 16, False, second[16:]), (target, 0))
        assert not [one for one in seen.frames() if struct.pack("!HH", 4001, 81) in one]


NOP = (socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x00")
PADDED = (socket.IPPROTO_IPV6, 59, b"\x00\x00\x01\x04\x00\x00\x00\x00")  # IPV6_DSTOPTS with PadN (RFC 8200, 4.2)
OPTIONS = {4: NOP, 6: PADDED}


@pytest.mark.parametrize("family", FAMILIES)
def test_options_do_not_hide_a_port(yard: Yard, family: int) -> None:
    """With options of IPv4, or a header of IPv6 before the datagram's, the port is elsewhere in the packet."""
    _only_the_allowed_comes(yard, family, (OPTIONS[family],))


def test_an_answer_is_let_in_by_its_flow_alone(yard: Yard) -> None:
    """x-b asks z-b: that gives z-b no other port, and no connection of its own from the port that x-b asked."""
    with serving(yard.netns["z-b"], 90), inside(yard.netns["x-b"]):
        asking = socket.socket()
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so that no end lingers
        asking.bind((yard.ips["x-b"][4], 4002))
        with asking:
            asking.settimeout(10)
            asking.connect((yard.ips["z-b"][4], 90))
            assert asking.recv(64), "the answer comes in"
            assert not answers(yard.netns["z-b"], yard.ips["x-b"][4], 80)
    with inside(yard.netns["x-b"]):
        again = socket.create_server((yard.ips["x-b"][4], 4002))
    with again, inside(yard.netns["z-b"]), socket.socket() as attacker:
        attacker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        attacker.bind((yard.ips["z-b"][4], 90))
        attacker.settimeout(2)
        with pytest.raises(OSError, match=r"No route|timed out|reset|refused"):
            attacker.connect((yard.ips["x-b"][4], 4002))


def test_a_flow_that_was_cut_is_not_taken_up_by_its_next_packet(yard: Yard) -> None:
    """z-b was allowed, and keeps sending on what it had: connection tracking alone would let it go on."""
    yard.apply("")
    with inside(yard.netns["z-b"]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect((yard.ips["x-b"][4], 80))
        client.send(MARK)
        assert client.recv(64)
        yard.apply(ONLY_A)
        with _seen(yard) as seen:
            for _ in range(20):
                with contextlib.suppress(OSError):
                    client.send(MARK)
            assert not [one for one in seen.frames() if MARK in one]


def test_labels_that_change_while_containers_come_and_go_leave_no_hole(yard: Yard) -> None:
    """A hundred changes at once: z-b never gets in, and at the end everything is as the records say."""
    ended = threading.Event()
    netns, call = yard.host.world.namespace(), yard.host.client.call

    def relabel() -> None:
        for label in itertools.cycle(("a", "c")):
            call("PATCH", "/v1/endpoints/z-c/labels", {"set": {"pod": label}, "remove": []})
            if ended.is_set() and label == "a":
                return

    def heard() -> int:
        with inside(yard.netns["z-b"]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(0.001)
            answered = 0
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    client.sendto(b"?", (yard.ips["x-b"][4], 80))
                    answered += bool(client.recv(64))
        return answered

    with ThreadPoolExecutor(2) as pool:
        both = pool.submit(relabel), pool.submit(heard)
        try:
            for number in range(12):
                pod = "ab"[number % 2]
                yard.host.attach(netns, "z", name="late", labels={"pod": pod})
                if pod == "a":
                    assert asked(netns, yard.ips["x-b"][4], 80), f"attach {number}"
                else:
                    assert not answers(netns, yard.ips["x-b"][4], 80), f"attach {number}"
                yard.host.detach(netns)
        finally:
            ended.set()
        assert [one.result() for one in both] == [None, 0]
    try:
        until(lambda: answers(yard.netns["z-c"], yard.ips["x-b"][4], 80), "the last label counts")
        assert yard.host.differences() == []
    finally:
        call("PATCH", "/v1/endpoints/z-c/labels", {"set": {"pod": "c"}, "remove": []})
