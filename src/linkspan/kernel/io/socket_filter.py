"""Programs of classic BPF: filters of a socket, by which the kernel keeps messages from it that nobody would read."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER in asm-generic/socket.h

Instruction = tuple[int, int, int, int]
"""The code, where to jump if true and if false, and the operand (struct sock_filter in linux/filter.h)."""


def packed(program: Sequence[Instruction]) -> tuple[bytes, ctypes.Array[ctypes.c_char]]:
    """Return a program as the kernel takes it (struct sock_fprog), and the buffer that this points to."""
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    return struct.pack("@HP", len(program), ctypes.addressof(buffer)), buffer


def attach(to: socket.socket, program: Sequence[Instruction]) -> None:
    """Let the kernel pass only what the program passes."""
    given, _buffer = packed(program)
    to.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, given)
