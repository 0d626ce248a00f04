"""D-Bus client for method calls with strings and answers of strings, which is all that firewalld needs.

Starting ``firewall-cmd`` takes 0.3 s and ``busctl`` may not be installed; this takes a millisecond. The wire
format is that of the D-Bus specification, chapters "Message Protocol" and "Authentication Protocol".
"""

from __future__ import annotations

import os
import socket
import struct
from types import TracebackType
from urllib.parse import unquote

from linkspan.core.errors import LinkspanError, Unavailable

DEFAULT = "unix:path=/run/dbus/system_bus_socket"
TIMEOUT = 5.0
"""Seconds for one call: firewalld answers nobody while it reloads, for a second or so."""
_CALL, _RETURN, _ERROR = 1, 2, 3
_NO_AUTO_START = 2
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY, _DESTINATION, _SIGNATURE = 1, 2, 3, 4, 5, 6, 8
_SELF = "org.freedesktop.DBus"


class Refused(LinkspanError):
    """The service answered with an error; ``name`` is its D-Bus name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message or name)
        self.name = name


class Bus:
    """A connection to the system bus. Raises Unavailable if there is none or if it does not answer."""

    def __init__(self, address: str = "") -> None:
        self._address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "") or DEFAULT
        self._serial = 0
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT)
        try:
            self._socket.connect(_path(self._address))
            self._socket.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
            if not self._line().startswith(b"OK"):
                raise Unavailable(f"D-Bus at {self._address} refuses the connection")
            self._socket.sendall(b"BEGIN\r\n")
            self.call(_SELF, "/org/freedesktop/DBus", _SELF, "Hello")
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"D-Bus at {self._address}: {error.strerror or error}") from error
        except LinkspanError:
            self._socket.close()
            raise

    def __enter__(self) -> Bus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def owned(self, name: str) -> bool:
        """Return whether somebody owns the name now."""
        try:
            self.call(_SELF, "/org/freedesktop/DBus", _SELF, "GetNameOwner", name)
        except Refused:
            return False
        return True

    def call(self, destination: str, path: str, interface: str, member: str, *arguments: str) -> list[str]:
        """Call a method with strings and return the strings of its answer. Raises Refused or Unavailable."""
        self._serial += 1
        body = b""
        for argument in arguments:
            body += bytes(-len(body) % 4) + _string(argument)
        fields = b""
        for code, kind, value in (
            (_PATH, b"o", path),
            (_INTERFACE, b"s", interface),
            (_MEMBER, b"s", member),
            (_DESTINATION, b"s", destination),
        ):
            fields += bytes(-len(fields) % 8) + bytes([code, 1]) + kind + b"\0" + _string(value)
        if arguments:
            signature = b"s" * len(arguments)
            fields += bytes(-len(fields) % 8) + bytes([_SIGNATURE, 1]) + b"g\0"
            fields += bytes([len(signature)]) + signature + b"\0"
        header = struct.pack("<cBBBIII", b"l", _CALL, _NO_AUTO_START, 1, len(body), self._serial, len(fields))
        message = header + fields
        try:
            self._socket.sendall(message + bytes(-len(message) % 8) + body)
            return self._answer()
        except OSError as error:
            raise Unavailable(f"{destination} {member}: {error.strerror or error}") from error

    def _answer(self) -> list[str]:
        while True:
            start = self._exactly(16)
            order = "<" if start[:1] == b"l" else ">"
            kind = start[1]
            size, _, fields_size = struct.unpack(f"{order}III", start[4:])
            raw = self._exactly(fields_size + -fields_size % 8)[:fields_size]
            body = self._exactly(size)
            fields = _fields(raw, order)
            if kind not in (_RETURN, _ERROR) or fields.get(_REPLY) != self._serial:
                continue  # a signal
            strings = _strings(body, str(fields.get(_SIGNATURE, "")), order)
            if kind == _ERROR:
                raise Refused(str(fields.get(_ERROR_NAME, "")), " ".join(strings))
            return strings

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _more(self) -> None:
        more = self._socket.recv(1 << 16)
        if not more:
            raise ConnectionResetError(0, "the bus closed the connection")
        self._buffer += more


def _path(address: str) -> str:
    """Return the socket of the first unix address in a list of D-Bus addresses."""
    for one in address.split(";"):
        transport, _, rest = one.partition(":")
        pairs = dict(pair.partition("=")[::2] for pair in rest.split(","))
        if transport == "unix" and "path" in pairs:
            return unquote(pairs["path"])
        if transport == "unix" and "abstract" in pairs:
            return "\0" + unquote(pairs["abstract"])
    raise Unavailable(
        f"D-Bus address {address!r} is not a unix socket", "set DBUS_SYSTEM_BUS_ADDRESS=unix:path=..."
    )


def _string(value: str) -> bytes:
    packed = value.encode()
    return struct.pack("<I", len(packed)) + packed + b"\0"


def _text(data: bytes, offset: int, order: str) -> tuple[str, int]:
    """Return the text at the next multiple of four, and the offset after it."""
    offset += -offset % 4
    (length,) = struct.unpack_from(f"{order}I", data, offset)
    end = offset + 4 + length
    return data[offset + 4 : end].decode(errors="replace"), end + 1


def _fields(data: bytes, order: str) -> dict[int, str | int]:
    """Unpack a header's array of (byte, variant); it has only strings and numbers."""
    found: dict[int, str | int] = {}
    offset = 0
    while offset < len(data):
        offset += -offset % 8
        code, kind = data[offset], data[offset + 2 : offset + 3]
        offset += 4
        if kind in (b"s", b"o"):
            found[code], offset = _text(data, offset, order)
        elif kind == b"g":
            length = data[offset]
            found[code] = data[offset + 1 : offset + 1 + length].decode()
            offset += length + 2
        else:
            (found[code],) = struct.unpack_from(f"{order}I", data, offset)
            offset += 4
    return found


def _strings(data: bytes, signature: str, order: str) -> list[str]:
    """Unpack an answer of one string, or one array of strings; return none for other types."""
    if signature == "s":
        return [_text(data, 0, order)[0]]
    found = []
    if signature == "as":
        (length,) = struct.unpack_from(f"{order}I", data)
        offset = 4
        while offset < 4 + length:
            string, offset = _text(data, offset, order)
            found.append(string)
    return found
