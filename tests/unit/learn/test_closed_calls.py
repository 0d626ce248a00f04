"""The filter of system calls for commands of others, on machines of every kind."""

from __future__ import annotations

import errno
import os
import socket
import sys

import pytest

from linkspan.learn import closed_calls
from linkspan.learn.closed_calls import NUMBERS, SOCKET

ALLOWED, ERRNO = 0x7FFF0000, 0x00050000
FOREIGN = 0x40000003


def verdict(machine: str, number: int, argument: int = 0, architecture: int = 0) -> int:
    """Return what the filter answers to a call: 0 if it is allowed, else the error."""
    data = {0: number, 4: architecture or NUMBERS[machine][0], 16: argument}
    program = closed_calls.program(machine)
    place = loaded = 0
    while True:
        code, yes, no, operand = program[place]
        if code == 0x20:
            loaded = data[operand]
        elif code == 0x06:
            assert operand == ALLOWED or operand & ~0xFFFF == ERRNO
            return 0 if operand == ALLOWED else operand & 0xFFFF
        else:
            place += yes if {0x15: loaded == operand, 0x35: loaded >= operand}[code] else no
        place += 1


@pytest.mark.parametrize("machine", NUMBERS)
def test_calls_that_no_namespace_limits_are_refused(machine: str) -> None:
    """Those of keys, those by another ABI, and those by which sockets could be made unseen."""
    numbers = NUMBERS[machine][1]
    refused = [number for name, number in numbers.items() if name != SOCKET]
    assert [verdict(machine, number) for number in (*refused, 425)] == [errno.ENOSYS] * 4
    assert verdict(machine, 0, architecture=FOREIGN) == errno.ENOSYS
    assert verdict(machine, 0x40000000 | numbers[SOCKET], socket.AF_INET) == errno.ENOSYS
    assert verdict(machine, numbers[SOCKET] + 1, socket.AF_VSOCK) == 0


@pytest.mark.parametrize("machine", NUMBERS)
def test_only_sockets_that_namespaces_limit_are_made(machine: str) -> None:
    """All others do not exist."""
    number = NUMBERS[machine][1][SOCKET]
    allowed = {family for family in range(64) if verdict(machine, number, family) == 0}
    assert allowed == {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET}
    assert verdict(machine, number, socket.AF_VSOCK) == errno.EAFNOSUPPORT


@pytest.mark.parametrize(("machine", "largest"), [("s390x", sys.maxsize), ("aarch64", 2**31 - 1)])
def test_a_machine_whose_calls_are_not_known_is_refused(
    monkeypatch: pytest.MonkeyPatch, machine: str, largest: int
) -> None:
    """Before anything is filtered: a Python of 32 bits could not even say so then."""
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*real[:4], machine)))
    monkeypatch.setattr(sys, "maxsize", largest)
    with pytest.raises(OSError, match="are not known"):
        closed_calls.forbid.__wrapped__()
