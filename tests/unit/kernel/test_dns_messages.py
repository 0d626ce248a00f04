"""DNS messages: what an answer says, and that no bytes at all do harm."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkspan.kernel.io import dns_messages
from linkspan.kernel.io.dns_messages import AAAA, MOST_PARTS, MOST_STEPS, A, Answer
from linkspan.kernel.probe import dns_answers
from support.dns_records import Record, reply, wire

IP = socket.inet_aton("192.0.2.7")
names = st.lists(st.from_regex(r"[a-z0-9_]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True), min_size=1, max_size=5).map(
    ".".join
)


def asked(name: str, *records: Record, kind: int = A, **more: int) -> Answer | None:
    """Return what an answer with these records says."""
    return dns_messages.answer(reply(dns_messages.question(7, name, kind), records, **more))


@given(names, st.lists(st.tuples(st.binary(min_size=4, max_size=4), st.integers(0, (1 << 31) - 1)), max_size=9))
def test_an_answer_says_what_the_name_has(name: str, addresses: list[tuple[bytes, int]]) -> None:
    """Each address with its TTL, whatever the name."""
    records = [Record(name, A, ttl, address) for address, ttl in addresses]
    assert asked(name, *records) == Answer(7, name, A, 0, addresses=tuple(addresses))


def test_the_shortest_ttl_on_the_way_counts() -> None:
    """An alias that ends sooner than the address ends what the asked name has."""
    found = asked("A.Example.com", Record("a.example.com", 5, 20, "b.example.net"), Record("b.example.net", A, 300, IP))
    assert found is not None
    assert (found.name, found.addresses) == ("a.example.com", ((IP, 20),))


def test_only_what_the_asked_name_leads_to_counts() -> None:
    """An address of another name in the same answer is none of the asked one, and neither is one of another type."""
    other = Record("b.example.com", A, 300, IP)
    assert (found := asked("a.example.com", other)) is not None
    assert found.addresses == ()
    assert (found := asked("a.example.com", Record("a.example.com", AAAA, 9, bytes(16)))) is not None
    assert found.addresses == ()


@pytest.mark.parametrize("length", [1, 2, MOST_STEPS - 1, MOST_STEPS, 200])
def test_aliases_are_followed_so_far(length: int) -> None:
    """A longer chain, or a circle, leads nowhere."""
    chain = [Record(f"n{number}", 5, 60, f"n{number + 1}") for number in range(length)]
    found = asked("n0", *chain, Record(f"n{length}", A, 60, IP))
    assert found is not None
    assert bool(found.addresses) == (length < MOST_STEPS)
    circle = asked("n0", *chain, Record(f"n{length}", 5, 60, "n0"))
    assert circle is not None
    assert circle.addresses == ()


def test_a_negative_ttl_is_none_at_all() -> None:
    """RFC 2181 section 8: the first bit of a TTL means zero."""
    found = asked("a.b", Record("a.b", A, 1 << 31 | 99, IP))
    assert found is not None
    assert found.addresses == ((IP, 0),)


def test_a_truncated_answer_says_only_that_it_is() -> None:
    """The asking agent goes on by TCP."""
    found = asked("a.b", Record("a.b", A, 60, IP), flags=0x0200)
    assert found is not None
    assert (found.truncated, found.addresses) == (True, ())


@pytest.mark.parametrize(
    "message",
    [
        dns_messages.question(7, "a.b", A),
        reply(dns_messages.question(7, "a.b", 16), []),
        reply(dns_messages.question(7, "a.b", A), [Record("a.b", A, 60, IP + b"\0")]),
        reply(dns_messages.question(7, "a.b", A), [Record("a.b", A, 60, IP)])[:-1],
        reply(dns_messages.question(7, "a.b", A), [Record("a.b", A, 60, IP)] * 257),
        reply(dns_messages.question(7, "a b.c", A), []),
        struct.pack("!6H", 7, 0x8180, 1, 0, 0, 0) + b"\xc0\x0c" + struct.pack("!2H", A, 1),
        struct.pack("!6H", 7, 0x8180, 1, 0, 0, 0) + b"\xc0\x20" + struct.pack("!2H", A, 1),
        struct.pack("!6H", 7, 0x8180, 1, 0, 0, 0) + wire(".".join(["a" * 63] * 5)) + struct.pack("!2H", A, 1),
        struct.pack("!6H", 7, 0x8180, 0, 0, 0, 0),
    ],
    ids=["question", "text", "size", "cut", "many", "blank", "itself", "forward", "long", "nothing"],
)
def test_what_is_no_answer_about_addresses_says_nothing(message: bytes) -> None:
    """Questions, other types, circles of pointers, names and data of wrong sizes."""
    assert dns_messages.answer(message) is None


def pointing(name: bytes, pointers: list[int]) -> bytes:
    """Return an answer whose question has a name, and whose records have no data and names of one pointer each."""
    head = struct.pack("!6H", 7, 0x8180, 1, len(pointers), 0, 0) + name + struct.pack("!2H", A, 1)
    return head + b"".join(struct.pack("!HHHIH", 0xC000 | at, 16, 1, 0, 0) for at in pointers)


def test_what_many_records_point_to_is_read_once() -> None:
    """An answer with as many records as one may have, all of the longest name, is sound."""
    longest = b"\1a" * 127 + b"\0"
    assert dns_messages.answer(pointing(longest, [12] * 256)) is not None


def test_a_message_that_is_much_work_says_nothing() -> None:
    """Few bytes could be millions of labels and pointers: 256 names of 100 labels each, or chains of pointers."""
    longest = b"\1a" * 127 + b"\0"
    assert dns_messages.answer(pointing(longest, [12 + 2 * number for number in range(100)])) is None
    chain = b"".join(struct.pack("!H", 0xC000 | (29 + 2 * number)) for number in range(MOST_PARTS))
    head = struct.pack("!6H", 7, 0x8180, 1, 2, 0, 0) + b"\0" + struct.pack("!2H", A, 1)
    head += b"\0" + struct.pack("!HHIH", 16, 1, 0, len(chain) + 1) + b"\0" + chain
    whole = head + struct.pack("!HHHIH", 0xC000 | (len(head) - 2), 16, 1, 0, 0)
    assert dns_messages.answer(whole) is None
    assert dns_messages.answer(whole[:-12] + struct.pack("!HHHIH", 0xC000 | 28, 16, 1, 0, 0)) is not None


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_no_bytes_do_harm(noise: bytes, more: bytes) -> None:
    """Neither alone, nor behind a sound beginning, nor as packets."""
    head = struct.pack("!6H", 7, 0x8180, 1, 3, 0, 0)
    for message in (noise, head + noise, head + wire("a.example.com") + struct.pack("!2H", A, 1) + noise + more):
        dns_messages.answer(message)
        for start in (b"\x45", b"\x60"):
            list(dns_answers.answers(start + message))


@given(st.data())
def test_a_spoilt_answer_is_read_or_refused(data: st.DataObject) -> None:
    """With any byte changed there is still at most what an answer may have."""
    whole = reply(
        dns_messages.question(7, "a.example.com", A),
        [Record("a.example.com", 5, 20, "b.example.net"), Record("b.example.net", A, 300, IP)],
    )
    at = data.draw(st.integers(0, len(whole) - 1))
    found = dns_messages.answer(whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :])
    assert found is None or all(len(address) in (4, 16) and 0 <= ttl < 1 << 31 for address, ttl in found.addresses)


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize("family", [4, 6])
def test_an_answer_is_found_in_its_packet(protocol: str, family: int) -> None:
    """By UDP behind its header; a fragment has none. By TCP a packet says what was asked, and nothing else.

    A stream is cut where the client likes: what looks like an answer may be a part of one that says something else.
    """
    message = reply(dns_messages.question(7, "a.b", A), [Record("a.b", A, 60, IP)])
    udp = struct.pack("!4H", 53, 4000, 8 + len(message), 0) + message
    tcp = struct.pack("!HHIIBBHHH", 53, 4000, 1, 1, 8 << 4, 0x18, 99, 0, 0) + bytes(12)
    inner, number = (udp, 17) if protocol == "udp" else (tcp + struct.pack("!H", len(message)) + message, 6)
    if family == 4:
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(inner), 1, 0, 64, number, 0) + bytes(8) + inner
        later = packet[:6] + b"\0\7" + packet[8:]
        assert list(dns_answers.answers(later)) == []
    else:
        packet = struct.pack("!IHBB", 6 << 28, len(inner), number, 64) + bytes(32) + inner
    (found,) = dns_answers.answers(packet)
    assert found.server == ("0.0.0.0" if family == 4 else "::")
    assert (found.answer.name, found.answer.kind) == ("a.b", A)
    by_udp = protocol == "udp"
    assert found.answer.truncated != by_udp
    assert found.answer.addresses == (((IP, 60),) if by_udp else ())
