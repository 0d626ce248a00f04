"""Captures: a pcapng file of what all hosts say that they saw, however much and whatever they say."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from linkspan.diagnose.trace.capture import (
    LONGEST_NAME,
    MOST,
    MOST_HOPS,
    SNAP,
    Frame,
    Received,
    Recorder,
    pcapng,
)
from linkspan.diagnose.trace.hops import Hop

HOPS = (
    Hop("h1", "c1", "eth0", "sent", ""),
    Hop("h1", "host", "ls-demo", "bridged", "", port="lspa"),
    Hop("h1", "host", "", "outside", ""),
    Hop("h2", "c2", "eth0", "delivered", ""),
)
REPLY = (HOPS[3], Hop("h2", "host", "lsrc", "routed", ""), Hop("h1", "host", "lspb", "routed", ""), HOPS[0])
ADDRESS = ("eth0", 0x0800, 4, 1, bytes(6))
DATA = bytes(20) + b"\x45" + bytes(63)


def seen(
    device: tuple[str, str], *, back: bool = False, at: int = 5, data: bytes = DATA, attempt: int = 1
) -> Frame:
    """Return a frame as a host reports it."""
    return Frame(device, back, at, len(data), data, attempt)


def blocks(file: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each block, whose two lengths must agree."""
    while file:
        kind, length = struct.unpack_from("<II", file)
        assert length % 4 == 0
        assert struct.unpack_from("<I", file, length - 4) == (length,)
        yield kind, file[8 : length - 4]
        file = file[length:]


def interfaces(file: bytes) -> list[str]:
    """Return the interfaces' names."""
    bodies = [body for kind, body in blocks(file) if kind == 1]
    lengths = [struct.unpack_from("<HH", body, 8) for body in bodies]
    assert {code for code, _ in lengths} == {2}
    return [body[12 : 12 + length].decode() for body, (_, length) in zip(bodies, lengths, strict=True)]


def packets(file: bytes) -> list[tuple[int, int, bytes]]:
    """Return interface, time and data of each packet."""
    found = []
    for kind, body in blocks(file):
        if kind == 6:
            number, high, low, length, _ = struct.unpack_from("<IIIII", body)
            found.append((number, high << 32 | low, body[20 : 20 + length]))
    return found


def test_there_is_an_interface_for_each_device_of_the_path() -> None:
    """By host, namespace and device, or the bridge's port, in the path's order; also where only the answer leaves."""
    file = pcapng(HOPS, REPLY, {})
    assert interfaces(file) == ["h1/c1/eth0", "h1/host/lspb", "h1/host/lspa", "h2/host/lsrc", "h2/c2/eth0"]
    assert packets(file) == []


def test_packets_are_in_the_order_of_the_path_whatever_the_clocks_say() -> None:
    """There, and then back; the second host's clock is behind."""
    late = 10**18
    a, entered, left, b = ("c1", "eth0"), ("host", "lspb"), ("host", "lspa"), ("c2", "eth0")
    frames = {
        "h1": [seen(a, back=True, at=late + 9), seen(left, at=late + 2), seen(entered, at=late + 1), seen(a, at=late)],
        "h2": [seen(b, at=7), seen(b, back=True, at=8)],
    }
    assert [(number, at) for number, at, _ in packets(pcapng(HOPS, REPLY, frames))] == [
        (0, late), (1, late + 1), (2, late + 2), (4, 7), (4, 8), (0, late + 9),
    ]  # fmt: skip


def test_the_file_has_the_attempt_that_came_farthest() -> None:
    """The first ones are sent before the other host listens, and the last ones before it has reported."""
    a, b = ("c1", "eth0"), ("c2", "eth0")
    frames = {"h1": [seen(a, at=n, attempt=n) for n in (1, 2, 3)], "h2": [seen(b, at=9, attempt=2)]}
    assert [(number, at) for number, at, _ in packets(pcapng(HOPS, REPLY, frames))] == [(0, 2), (4, 9)]


@pytest.mark.parametrize(
    "frame",
    [
        seen(("c1", "eth9")),
        seen(("c1", "eth0"), data=b"short"),
        seen(("c1", "eth0"), data=bytes(SNAP + 1)),
        seen(("c1", "eth0"), at=-1),
        seen(("c1", "eth0"), at=2**64),
    ],
)
def test_what_no_honest_host_says_is_left_out(frame: Frame) -> None:
    """A device beside the path, a frame without its header or too long a one, a time that is none."""
    frames = {"h1": [frame, seen(("c1", "eth0"))], "h3": [seen(("c1", "eth0"))]}
    assert packets(pcapng(HOPS, REPLY, frames)) == [(0, 5, DATA)]


def test_a_host_cannot_fill_the_file_and_sizes_stay_possible() -> None:
    """Only the first frames count."""
    huge = Frame(("c1", "eth0"), back=False, at=1, size=2**40, data=DATA)
    assert len(packets(pcapng(HOPS, REPLY, {"h1": [huge] * (MOST + 5)}))) == MOST


def test_hostile_devices_leave_a_file_that_can_be_read() -> None:
    """However long their names are, and however many they are."""
    long = Hop("h1", "c1", "é" * 70_000, "sent", "")
    many = tuple(Hop("h2", "host", f"eth{number}", "routed", "") for number in range(20_000))
    names = interfaces(pcapng((long, *many), many[::-1], {}))
    assert len(names) <= 2 * MOST_HOPS
    assert all(len(name.encode()) <= LONGEST_NAME for name in names)
    assert names[0] == "h1/c1/" + "é" * 124


def test_a_recorder_keeps_the_beginning_of_so_many_frames() -> None:
    """With the cooked header before each; and nothing if nobody wants them."""
    recorder, idle = Recorder(wanted=True), Recorder(wanted=False)
    for one in (recorder, idle):
        for _ in range(MOST + 5):
            one.add(("c1", "eth0"), Received(b"\x45" + bytes(1400), 3, ADDRESS), back=False, attempt=1)
    assert idle.frames() == ()
    kept = recorder.frames()
    assert len(kept) == MOST
    assert kept[0].size == 1421
    assert len(kept[0].data) == SNAP
    assert kept[0].data[:21] == struct.pack("!HHIHBB8s", 0x0800, 0, 0, 1, 4, 6, bytes(8)) + b"\x45"
