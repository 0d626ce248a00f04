"""Sniffer on the underlay of an encrypted network: shows every frame that passes the switch, for a moment."""

from __future__ import annotations

import socket
import subprocess
from collections import Counter

from linkspan.backends.wireguard import backend as wireguard
from linkspan.demo.screen import Screen
from linkspan.lab import inside, sockets
from linkspan.lab.record import Lab
from linkspan.lab.topology import bare

_ALL, _IP = 0x0003, b"\x08\x00"  # linux/if_ether.h
_PROTOCOLS = {6: "TCP", 17: "UDP", 50: "ESP", 1: "ICMP"}
WORD = "secret"


def show(screen: Screen, lab: Lab) -> None:
    """Ping with a word as payload, and show what was seen of it; with WireGuard, then change a host's key."""
    rotates = lab.backend == wireguard.BACKEND.name  # IPsec credentials are changed by an operator
    words = screen.words
    if rotates:
        screen.title(words("7. Somebody listens on the underlay, and a key is changed"))
    else:
        screen.title(words("7. Somebody listens on the underlay"))
    one, other = lab.container("c1"), lab.container("c2")
    address = bare(other.addresses[0])
    with sockets.inside(lab.switch):
        listening = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    command = ["ping", "-c3", "-i0.2", "-p", WORD.encode().hex(), address]
    with listening:
        payload = words("the payload: {word}", word=WORD)
        screen.say(f"  [cyan]$[/cyan] linkspan lab exec c1 -- {' '.join(command)}    # {payload}")
        argv = ["ip", "netns", "exec", one.namespace, *command]
        answered = subprocess.run(argv, capture_output=True, check=False).returncode == 0
        screen.expect(answered, words("{address} answers", address=address))
        frames = _taken(listening)
    kinds = Counter(filter(None, map(_kind, frames)))
    for text, count in kinds.most_common(4):
        screen.output([words("{count:4} frames: {text}", count=count, text=text)])
    inner = [socket.inet_aton(bare(c.addresses[0])) for c in (one, other)]
    seen = any(WORD.encode() * 2 in frame or any(a in frame[26:34] for a in inner) for frame in frames)
    text = words("neither the payload nor a container's address is in any of them")
    screen.expect(bool(frames) and not seen, text)
    if rotates:
        argv = ["linkspan", "host", "rotate-keys"]
        screen.shown(" ".join(argv), inside.command(lab, "h1", argv), inside.environment(lab, "h1"))


def _taken(listening: socket.socket) -> list[bytes]:
    listening.setblocking(False)
    found = []
    while True:
        try:
            found.append(listening.recv(1 << 16))
        except BlockingIOError:
            return found


def _kind(frame: bytes) -> str:
    """Return what an eavesdropper reads of an IPv4 packet: source, destination and protocol."""
    if frame[12:14] != _IP:
        return ""
    ends = " > ".join(socket.inet_ntoa(frame[at : at + 4]) for at in (26, 30))
    protocol = _PROTOCOLS.get(frame[23], f"protocol {frame[23]}")
    port = f" port {int.from_bytes(frame[36:38], 'big')}" if protocol == "UDP" else ""
    return f"{ends}, {protocol}{port}"
