"""Packet sender (a program): one container of a lab sends to others while something else happens, and counts.

    packet_sender.py OWN[,OWN] PEER...

To every peer: small datagrams, datagrams as large as the path takes, none of which may be fragmented, and a
TCP stream. It says ``up`` once all streams stand, ends at SIGTERM, and then prints its counts as JSON: by the
peer's address the datagrams sent and received, [small, large], the streams' bytes, and the largest packet's
size at the end.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import sys
import time

UDP, TCP = 9001, 9009
TICK = 0.02
KNOWN = b"known payload of a stream: "
"""What a stream is made of, which nobody may see where it is encrypted."""
CHUNK = (KNOWN * (32 * 1024 // len(KNOWN) + 1))[: 32 * 1024]
LINGER = 30.0
_DISCOVER = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}
_MTU = {socket.AF_INET: (socket.IPPROTO_IP, 14, 28), socket.AF_INET6: (socket.IPPROTO_IPV6, 24, 48)}
"""Socket options (linux/in.h, in6.h), and the bytes of the IP and UDP headers."""
_DO = 2
_RCVBUFFORCE = 33  # asm-generic/socket.h


def family(address: str) -> socket.AddressFamily:
    """Return an address's family."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Peer:
    """The way to one peer."""

    def __init__(self, own: str, address: str) -> None:
        self.address = address
        self.family = family(address)
        self.sent = [0, 0]
        self.bytes = 0
        self.waiting = memoryview(b"")
        self.udp = socket.socket(self.family, socket.SOCK_DGRAM)
        self.udp.setblocking(False)
        self.udp.setsockopt(*_DISCOVER[self.family], _DO)
        self.udp.bind((own, 0))
        self.udp.connect((address, UDP))
        self.tcp = self._connected(own)

    def _connected(self, own: str) -> socket.socket:
        deadline = time.monotonic() + LINGER
        while True:
            try:
                return socket.create_connection((self.address, TCP), 2, source_address=(own, 0))
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def mtu(self) -> int:
        """Return the largest packet that the kernel would send to the peer."""
        level, option, _ = _MTU[self.family]
        return self.udp.getsockopt(level, option)

    def remembered(self) -> int:
        """Return the same, by a look of its own: a socket keeps the route that it last sent by."""
        self.udp.connect((self.address, UDP))
        return self.mtu()

    def send(self) -> None:
        """Send one datagram of each size, and a piece of the stream."""
        for large in (0, 1):
            for _ in range(3):  # the kernel may have learnt of a smaller MTU just now
                body = b"L" * (self.mtu() - _MTU[self.family][2]) if large else b"S"
                try:
                    self.udp.send(body)
                except OSError:
                    continue
                break
            self.sent[large] += 1
        self.waiting = self.waiting or memoryview(CHUNK)
        with contextlib.suppress(BlockingIOError):
            done = self.tcp.send(self.waiting)
            self.waiting, self.bytes = self.waiting[done:], self.bytes + done


class Sink:
    """Received packets: datagrams and streams, counted by the sender's address."""

    def __init__(self, own: list[str]) -> None:
        self.datagrams: dict[str, list[int]] = {}
        self.bytes: dict[str, int] = {}
        self.udp, self.listening = [], []
        self.streams: dict[socket.socket, str] = {}
        for address in own:
            udp = socket.socket(family(address), socket.SOCK_DGRAM)
            udp.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 23)
            udp.bind((address, UDP))
            udp.setblocking(False)
            self.udp.append(udp)
            self.listening.append(socket.create_server((address, TCP), family=family(address), backlog=64))

    def take(self, seconds: float) -> None:
        """Take in what has come, waiting at most so long."""
        for ready in select.select([*self.udp, *self.listening, *self.streams], [], [], max(seconds, 0))[0]:
            if ready in self.listening:
                stream, sender = ready.accept()
                self.streams[stream] = sender[0]
                self.bytes.setdefault(sender[0], 0)
            elif ready in self.udp:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        body, sender = ready.recvfrom(65535)
                        self.datagrams.setdefault(sender[0], [0, 0])[body[:1] == b"L"] += 1
            else:
                body = ready.recv(1 << 18)
                self.bytes[self.streams[ready]] += len(body)
                if not body:
                    del self.streams[ready]
                    ready.close()


def say(text: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(own: list[str], addresses: list[str]) -> None:
    """Send and receive until SIGTERM."""
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
    sink = Sink(own)
    mine = {family(address): address for address in own}
    say("listening")
    sys.stdin.readline()  # all others listen too
    peers = [Peer(mine[family(address)], address) for address in addresses]
    for peer in peers:
        peer.tcp.setblocking(False)
    while len(sink.bytes) < len(peers):
        sink.take(TICK)
    say("up")
    while not ending:
        begin = time.monotonic()
        for peer in peers:
            peer.send()
        while (left := begin + TICK - time.monotonic()) > 0 and not ending:
            sink.take(left)
        sink.take(0)
    for peer in peers:
        peer.tcp.shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + LINGER
    while sink.streams and time.monotonic() < deadline:
        sink.take(TICK)
    sink.take(TICK)
    told = {peer.address: {"sent": peer.sent, "bytes": peer.bytes, "mtu": peer.remembered()} for peer in peers}
    say(json.dumps({"to": told, "from": {"datagrams": sink.datagrams, "bytes": sink.bytes}}))


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2:])
