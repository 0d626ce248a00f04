"""BPF programs that drop every packet, attached to devices by system calls alone: no compiler, no file."""

from __future__ import annotations

import ctypes
import os
import struct

from linkspan.kernel.io.netlink import SETLINK, Message, Socket, attr, u32

# linux/bpf.h; the system call's number on x86_64
_SYSCALL, _PROG_LOAD, _LINK_CREATE = 321, 5, 28
_SCHED_CLS, _XDP, _TCX_INGRESS = 3, 6, 46
_DROP = {_XDP: 1, _SCHED_CLS: 2}  # XDP_DROP, TC_ACT_SHOT
_IFLA_XDP, _XDP_FD, _XDP_FLAGS, _GENERIC = 43, 1, 3, 1 << 1  # linux/if_link.h

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, request: bytes) -> int:
    buffer = ctypes.create_string_buffer(request, len(request))
    found: int = _libc.syscall(_SYSCALL, command, buffer, len(request))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"bpf command {command}")
    return found


def _load(kind: int) -> int:
    """Load ``r0 = DROP; exit`` and return its descriptor."""
    code = struct.pack("=BBhi", 0xB7, 0, 0, _DROP[kind]) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    instructions, license_ = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    pointers = ctypes.addressof(instructions), ctypes.addressof(license_)
    return _bpf(_PROG_LOAD, struct.pack("=IIQQIIQII16x", kind, 2, *pointers, 0, 0, 0, 0, 0))


def drop_by_xdp(index: int) -> None:
    """Let a program drop all that a device of this namespace receives, as long as the device is there."""
    program = _load(_XDP)
    try:
        _attach(index, program)
    finally:
        os.close(program)


def no_xdp(index: int) -> None:
    """Take the program away."""
    _attach(index, -1)


def _attach(index: int, program: int) -> None:
    told = attr(_XDP_FD, struct.pack("=i", program)) + u32(_XDP_FLAGS, _GENERIC)
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0) + attr(_IFLA_XDP, told)
    socket = Socket()
    try:
        socket.request(Message(SETLINK, 0, body, f"attach a program to link {index}"))
    finally:
        socket.close()


def drop_by_tcx(index: int) -> int:
    """Let a program drop all that a device of this namespace receives, until the returned descriptor is closed."""
    program = _load(_SCHED_CLS)
    try:
        return _bpf(_LINK_CREATE, struct.pack("=IIII32x", program, index, _TCX_INGRESS, 0))
    finally:
        os.close(program)
