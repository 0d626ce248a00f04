"""System calls that the commands of others must not use: what they reach is in no namespace.

The kernel's keys belong to a user, in every namespace. Some families of sockets have no namespaces: AF_VSOCK reaches
the hypervisor, and AF_QIPCRTR the firmware of a modem. So only those are left that have some. An io_uring makes
sockets, too, which no filter sees.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import socket
import sys

from linkspan.kernel.io.socket_filter import Instruction, packed

KEYCTL, SOCKET = "keyctl", "socket"
NUMBERS = {
    "x86_64": (0xC000003E, {"add_key": 248, "request_key": 249, KEYCTL: 250, SOCKET: 41}),
    "aarch64": (0xC00000B7, {"add_key": 217, "request_key": 218, KEYCTL: 219, SOCKET: 198}),
    "riscv64": (0xC00000F3, {"add_key": 217, "request_key": 218, KEYCTL: 219, SOCKET: 198}),
}
"""By machine: its name in the audit, and the numbers of the calls there."""
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET)
"""Families of sockets that are allowed: namespaces limit what they reach."""
_IO_URING_SETUP = 425
"""The same on each machine."""
_OTHER_ABI = 0x40000000
"""From here the numbers are those of x32, with other ones for the same calls."""
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Places in struct seccomp_data; of the argument, the lower half on these machines."""
_ALLOW: Instruction = (_RETURN, 0, 0, 0x7FFF0000)
_REFUSE: Instruction = (_RETURN, 0, 0, 0x00050000 | errno.ENOSYS)
_NO_FAMILY: Instruction = (_RETURN, 0, 0, 0x00050000 | errno.EAFNOSUPPORT)
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


@functools.cache
def forbid() -> None:
    """Forbid these calls to this thread, and to all programs that it starts. Raises OSError.

    A Python of 32 bits is refused, because its calls have other numbers than those of the machine that `uname` names.
    """
    if sys.maxsize < 2**32 or os.uname().machine not in NUMBERS:
        raise OSError(errno.ENOSYS, "the numbers of this machine's system calls are not known")
    given, _buffer = packed(program(os.uname().machine))
    filtering = ctypes.create_string_buffer(given)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    zero = ctypes.c_ulong(0)
    for words in (
        (_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero),
        (_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), filtering, zero, zero),
    ):
        if prctl(*words):
            number = ctypes.get_errno()
            raise OSError(number, f"the kernel takes no filter of system calls ({os.strerror(number)})")


def program(machine: str) -> list[Instruction]:
    """Return the filter for a machine; each question jumps over the answer after it."""
    architecture, numbers = NUMBERS[machine]
    refused = [_IO_URING_SETUP, *(number for name, number in numbers.items() if name != SOCKET)]
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        _REFUSE,
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _OTHER_ABI),
        _REFUSE,
        *(line for number in refused for line in ((_EQUAL, 0, 1, number), _REFUSE)),
        (_EQUAL, 1, 0, numbers[SOCKET]),
        _ALLOW,
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *(line for family in FAMILIES for line in ((_EQUAL, 0, 1, family), _ALLOW)),
        _NO_FAMILY,
    ]
