"""Socket probes inside a lab's namespaces: no process is started for any of them.

A socket stays in the namespace where it was opened, so the thread enters, opens it, and comes back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

from linkspan.kernel.io.namespaces import Namespaces, open_namespace

ANSWER = 2.0
"""Seconds that a probe waits in total; a lost packet is sent again meanwhile."""
AGAIN = 0.4
HEADERS = {4: 28, 6: 48}
"""Bytes of IP and ICMP before the payload (RFC 791, 792, 8200, 4443)."""
_ICMP = {4: (socket.IPPROTO_ICMP, 8, 0), 6: (socket.IPPROTO_ICMPV6, 128, 129)}
# linux/in.h, linux/in6.h: never fragment, whatever path MTU is cached; and the path's MTU.
_IP_MTU_DISCOVER, _IP_MTU, _IPV6_MTU_DISCOVER, _IPV6_MTU, _DO = 10, 14, 23, 24, 2


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """Move this thread into a named namespace. Raises NotFound if it does not exist."""
    spaces = Namespaces()
    path = f"/run/netns/{netns}"
    fd = open_namespace(path)
    try:
        with spaces.holding(fd) as number, spaces.entered(number):
            yield
    finally:
        os.close(fd)
        spaces.close()


def family(address: str) -> int:
    """Return 4 or 6."""
    return 6 if ":" in address else 4


def _af(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def ping(netns: str, address: str, size: int = 0, seconds: float = ANSWER) -> str:
    """Ping; with ``size``, by a packet of that many bytes with DF. Return "" or the reason for a failure."""
    number = family(address)
    protocol, request, reply = _ICMP[number]
    try:
        with inside(netns):
            raw = socket.socket(_af(address), socket.SOCK_RAW, protocol)
    except OSError as error:
        return _words(error)
    with raw:
        if size:
            level = (
                (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER)
                if number == 6
                else (socket.IPPROTO_IP, _IP_MTU_DISCOVER)
            )
            raw.setsockopt(*level, _DO)
        identity = os.urandom(8)
        body = identity + bytes(max(size - HEADERS[number] - len(identity), 0))
        try:
            raw.connect((address, 0))
            return _exchange(raw, request, reply, body, time.monotonic() + seconds)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                return f"too large: the path carries {_path_mtu(raw, number)} bytes"
            return _words(error)


def _path_mtu(raw: socket.socket, number: int) -> str:
    option = (socket.IPPROTO_IPV6, _IPV6_MTU) if number == 6 else (socket.IPPROTO_IP, _IP_MTU)
    try:
        return str(raw.getsockopt(*option))
    except OSError:
        return "fewer"


def _exchange(raw: socket.socket, request: int, reply: int, body: bytes, deadline: float) -> str:
    """Send until an answer with the same body arrives; a connected socket receives only that peer's."""
    sequence = 0
    while (now := time.monotonic()) < deadline:
        sequence += 1
        raw.send(_echo(request, sequence, body))
        until = min(now + AGAIN, deadline)
        while (left := until - time.monotonic()) > 0:
            raw.settimeout(left)
            with contextlib.suppress(TimeoutError):
                packet = raw.recv(70_000)
                start = (packet[0] & 15) * 4 if reply == 0 else 0  # IPv4 includes its header (raw(7))
                if packet[start] == reply and packet[start + 8 :] == body:
                    return ""
    return "no answer"


def _echo(kind: int, sequence: int, body: bytes) -> bytes:
    """Return an echo request; the kernel fills in ICMPv6's checksum (RFC 3542, 3.1)."""
    packet = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, sequence) + body
    padded = packet + b"\0" * (len(packet) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total >> 16) + (total & 0xFFFF)
    total += total >> 16
    return packet[:2] + struct.pack("!H", ~total & 0xFFFF) + packet[4:]


def tcp(netns: str, address: str, port: int, greeting: bytes, seconds: float = ANSWER) -> str:
    """Connect, and read whose greeting it is. Return "" or the reason for a failure."""
    try:
        with inside(netns):
            stream = socket.socket(_af(address), socket.SOCK_STREAM)
        with stream:
            stream.settimeout(seconds)
            stream.connect((address, port))
            said = stream.recv(64)
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return _words(error)
    return "" if said == greeting else f"another one answers: {said.decode(errors='replace')}"


def _words(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)


class Greeter:
    """A TCP server in a namespace that sends its greeting to each client and closes; IPv4 and IPv6."""

    def __init__(self, netns: str, greeting: bytes) -> None:
        self.greeting = greeting
        with inside(netns):
            self._socket = self._listen()
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @staticmethod
    def _listen() -> socket.socket:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
        return socket.create_server(("0.0.0.0", 0), backlog=128)

    def _serve(self) -> None:
        while True:
            try:
                stream, _ = self._socket.accept()
            except OSError:
                return  # closed
            with stream, contextlib.suppress(OSError):
                stream.sendall(self.greeting)

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(ANSWER)
