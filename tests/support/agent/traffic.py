"""Sockets inside namespaces: servers that tell whom they see, clients that ask them, raw frames and captures."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator

from linkspan.kernel.io import namespaces
from linkspan.lab.commands import entering

SHORT = 0.3
"""Seconds that a negative finding waits: what passes takes less than one millisecond here."""
_ALL = 0x0003  # ETH_P_ALL, linux/if_ether.h
_REPAIR, _REPAIR_QUEUE, _QUEUE_SEQ = 19, 20, 21  # TCP_REPAIR and others, linux/tcp.h
_OUTGOING = 4  # PACKET_OUTGOING, linux/if_packet.h


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """Put this thread into a named namespace for a while; a socket stays where it was made."""
    home = namespaces.open_namespace("/proc/thread-self/ns/net")
    there = namespaces.open_namespace(f"/run/netns/{netns}")
    try:
        namespaces._setns(there, netns)
        yield
    finally:
        namespaces._setns(home, "home")
        for fd in (home, there):
            os.close(fd)


def transfer(sender: str, receiver: str, address: str, size: int) -> float:
    """Send bytes by TCP from one namespace to another, and return the seconds until the last has come."""
    with inside(receiver):
        server = socket.create_server((address, 0), family=_family(address))
    with inside(sender):
        client = socket.socket(_family(address))
    with server, client:
        client.settimeout(20)
        client.connect(server.getsockname())
        connection, _ = server.accept()
        connection.settimeout(20)
        begun = time.monotonic()
        thread = threading.Thread(target=client.sendall, args=(bytes(size),))
        thread.start()
        got = 0
        with connection:
            while got < size:
                got += len(connection.recv(65536))
        thread.join()
        return time.monotonic() - begun


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


_TELL_ERRORS = {
    socket.AF_INET: (0, 11),
    socket.AF_INET6: (41, 25),
}  # IP_RECVERR, IPV6_RECVERR (linux/in.h, in6.h)
_KIND = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@contextlib.contextmanager
def serving(netns: str, port: int, protocol: str = "tcp", address: str = "::") -> Iterator[socket.socket]:
    """Answer everyone, while the block lasts, with the address that is seen (and the server's namespace)."""
    with inside(netns):
        server = socket.socket(_family(address), _KIND[protocol])
    if address == "::":
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    if protocol == "tcp":
        server.listen(16)
    ended = threading.Event()

    def answer() -> None:
        while not ended.is_set():
            if not select.select([server], [], [], 0.01)[0]:
                continue
            with contextlib.suppress(OSError):
                if protocol == "tcp":
                    connection, peer = server.accept()
                    with connection:
                        connection.sendall(seen_from(peer[0], netns))
                else:
                    _, peer = server.recvfrom(2048)
                    server.sendto(seen_from(peer[0], netns), peer)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        ended.set()
        thread.join()
        server.close()


def seen_from(address: str, netns: str) -> bytes:
    """Return a server's answer: the client's address as it sees it, and its own namespace."""
    return f"{address.removeprefix('::ffff:')} {netns}".encode()


def asked(
    netns: str, address: str, port: int, protocol: str = "tcp", seconds: float = 10.0
) -> tuple[str, str]:
    """Ask a server and return (the address that it saw, its namespace). Raises OSError."""
    with inside(netns):
        client = socket.socket(_family(address), _KIND[protocol])
    with client:
        client.settimeout(seconds)
        if protocol == "udp":  # tell of each ICMP error, also of those that may pass
            client.setsockopt(*_TELL_ERRORS[client.family], 1)
        client.connect((address, port))
        if protocol == "udp":
            client.send(b"?")
        seen, _, where = client.recv(2048).decode().partition(" ")
        return seen, where


def answers(netns: str, address: str, port: int, protocol: str = "tcp") -> bool:
    """Return whether a server answers."""
    try:
        return asked(netns, address, port, protocol, SHORT) != ("", "")
    except OSError:
        return False


def echoes(netns: str, address: str) -> bool:
    """Return whether one of two pings is answered within SHORT."""
    command = [*entering(netns), "ping", "-n", "-c2", "-i0.1", f"-W{SHORT}", address]
    return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0


def refusal(netns: str, address: str, port: int, protocol: str = "tcp") -> int:
    """Return the errno by which an ICMP error or a reset refuses a client; 0 where it is let in, or nobody answers."""
    try:
        asked(netns, address, port, protocol, 2.5)
    except TimeoutError:
        return 0
    except OSError as error:
        return error.errno or 0
    return 0


def retransmitted(client: socket.socket) -> int:
    """Return how many TCP segments of a connection were sent again, its SYN among them."""
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("=I", info, 100)[0])  # tcpi_total_retrans, linux/tcp.h


def late(client: socket.socket) -> bytes:
    """Return a TCP segment (IPv4) of a client's connection that is far out of its window, and has no data."""
    (source, sport), (target, dport) = client.getsockname(), client.getpeername()
    client.setsockopt(socket.IPPROTO_TCP, _REPAIR, 1)
    expected, sent = (_sequence(client, queue) for queue in (1, 2))
    client.setsockopt(socket.IPPROTO_TCP, _REPAIR, -1)
    far = (sent + (1 << 30)) & 0xFFFFFFFF
    plain = struct.pack("!HHIIBBHHH", sport, dport, far, expected, 5 << 4, 0x10, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20)
    total = sum(struct.unpack("!16H", pseudo + plain))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return plain[:16] + struct.pack("!H", ~total & 0xFFFF) + plain[18:]


def _sequence(client: socket.socket, queue: int) -> int:
    """Return the next sequence number of a connection under repair: to receive (queue 1), or to send (2)."""
    client.setsockopt(socket.IPPROTO_TCP, _REPAIR_QUEUE, queue)
    return client.getsockopt(socket.IPPROTO_TCP, _QUEUE_SEQ) & 0xFFFFFFFF


class Capture:
    """Packets that pass a device, from the creation of this object on."""

    def __init__(self, netns: str, device: str) -> None:
        with inside(netns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
            self._socket.bind((device, _ALL))

    def close(self) -> None:
        """End it."""
        self._socket.close()

    def frames(self, seconds: float = SHORT, outgoing: bool = True) -> list[bytes]:
        """Return the frames of the next ``seconds``, with those that came before."""
        found: list[bytes] = []
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                frame, origin = self._socket.recvfrom(65536)
                if outgoing or origin[2] != _OUTGOING:
                    found.append(frame)
        return found

    def sees(self, part: bytes, seconds: float = 10.0) -> bool:
        """Return whether a frame with these bytes in it comes in time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0] and part in self._socket.recv(65536):
                return True
        return False


@contextlib.contextmanager
def capturing(netns: str, device: str) -> Iterator[Capture]:
    """Capture on a device while the block lasts."""
    capture = Capture(netns, device)
    try:
        yield capture
    finally:
        capture.close()


def send_frame(netns: str, device: str, frame: bytes) -> None:
    """Send a frame as it is, padded to 60 bytes."""
    with inside(netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((device, 0))
        raw.send(frame.ljust(60, b"\0"))
