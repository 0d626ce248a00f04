"""A cluster whose containers ask for names, as tests of names see it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from linkspan.kernel.io.namespaces import open_namespace
from linkspan.lab import sockets
from support.dns_queries import IN, A, Answer, ask, read_name
from support.lab.cluster_runs import ClusterRun
from support.polling import until

GATEWAY, GATEWAY6 = "10.244.0.1", "fd00:244::1"


class NamesRun(ClusterRun):
    """A cluster, and what its containers ask."""

    def ask(self, place: str, name: str, kind: int = A, server: str = GATEWAY, tcp: bool = False) -> Answer:
        """Ask from a host or container; a server that answers too late is asked once more."""
        for last in (False, True):
            with sockets.inside(f"{self.name}-{place}"):
                try:
                    return ask(server, name, kind, tcp=tcp)
                except TimeoutError:
                    if last:
                        raise
        raise AssertionError

    def knows(self, place: str, name: str, server: str = GATEWAY) -> bool:
        """Return whether a name has an address."""
        with contextlib.suppress(OSError):
            return bool(self.ask(place, name, server=server).data)
        return False

    def all_known(self, containers: Sequence[str] = ("c1", "c2", "c3")) -> None:
        """Wait until each of these containers knows all of their names."""
        for place in containers:
            for name in containers:
                until(lambda place=place, name=name: self.knows(place, name), f"{place} knows {name}")

    @contextlib.contextmanager
    def container(
        self, host: str, name: str, network: str = "demo", aliases: str = "", ports: Sequence[dict[str, object]] = ()
    ) -> Iterator[dict[str, Any]]:
        """Attach a container for a while; it is yielded as the agent has it, with when it was there (``at``)."""
        namespace = f"{self.name}-{name}"
        subprocess.run(["ip", "netns", "add", namespace], check=True)
        try:
            yield self._attached(host, name, network, {"labels": {"aliases": aliases}, "ports": ports})
        finally:
            self.call(host, "POST", "/v1/detach", {"id": name})
            subprocess.run(["ip", "netns", "delete", namespace], check=True)

    @contextlib.contextmanager
    def member(self, host: str, name: str, network: str) -> Iterator[dict[str, Any]]:
        """Attach a container that is there to one more network for a while."""
        made = self._attached(host, name, network, {})
        try:
            yield made
        finally:
            self.call(host, "POST", "/v1/detach", {"id": name, "ifname": made["ifname"]})

    def _attached(self, host: str, name: str, network: str, more: dict[str, object]) -> dict[str, Any]:
        path = f"/run/netns/{self.name}-{name}"
        fd = open_namespace(path)
        body = {"id": name, "name": name, "network": network, "namespace_fd": fd, "namespace_path": path, **more}
        try:
            found: dict[str, Any] = self.call(host, "POST", "/v1/attach", body)
        finally:
            os.close(fd)
        return found | {"at": time.monotonic()}

    def bridged(
        self, name: str, pool: str, internal: bool = False, hosts: Sequence[str] = ("h1", "h2", "h3")
    ) -> None:
        """Create a network that each host has for itself, and wait until they do."""
        wish = {"name": name, "pools": [pool], "backend": "bridge", "internal": internal}
        self.call("h1", "POST", "/v1/networks", wish)
        device = f"ls-{name}"
        until(lambda: all(device in self.ip(host, "link") for host in hosts), f"{name} is everywhere")

    def server(self, host: str, network: str = "demo") -> int:
        """Return the process of a network's server on a host, 0 where there is none."""
        mark = f"LINKSPAN_PROCESS={self.folder}/{host}/state:names-{network}".encode()
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if process.name.isdigit() and mark in (process / "environ").read_bytes().split(b"\0"):
                    return int(process.name)
        return 0


class Responder:
    """A server of names at an address of a namespace: it answers each question for A with ``address``, or asks ``via``.

    ``asked`` is what it was asked, and by whom.
    """

    def __init__(self, netns: str, place: str, address: str = "", via: str = "") -> None:
        self.asked: list[tuple[str, str]] = []
        self._netns, self._address, self._via = netns, address, via
        self._way = self._open()
        self._way.bind((place, 53))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def names(self) -> set[str]:
        """Return the names that were asked for."""
        return {name for name, _ in self.asked}

    def close(self) -> None:
        """End."""
        with contextlib.suppress(OSError):  # a socket without a peer says so, and wakes who reads
            self._way.shutdown(socket.SHUT_RD)
        self._thread.join()
        self._way.close()

    def _open(self) -> socket.socket:
        with sockets.inside(self._netns):
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def _serve(self) -> None:
        while True:
            query, where = self._way.recvfrom(4096)
            if not query:
                return
            name, end = read_name(query, 12)
            self.asked.append((name, where[0]))
            if self._via:
                threading.Thread(target=self._forward, args=(query, where)).start()
            else:
                self._way.sendto(self._answer(query, end), where)

    def _answer(self, query: bytes, end: int) -> bytes:
        found = query[end : end + 4] == struct.pack("!2H", A, IN)
        head = query[:2] + struct.pack("!5H", 0x8180, 1, found, 0, 0)
        record = struct.pack("!3HIH", 0xC00C, A, IN, 0, 4) + socket.inet_aton(self._address)
        return head + query[12 : end + 4] + record * found

    def _forward(self, query: bytes, where: tuple[str, int]) -> None:
        with self._open() as way, contextlib.suppress(OSError):
            way.settimeout(5)
            way.connect((self._via, 53))
            way.send(query)
            self._way.sendto(way.recv(4096), where)


def resolver() -> str:
    """Return a resolver of this machine, or the one that Docker takes instead of its own loopback's."""
    text = Path("/etc/resolv.conf").read_text(encoding="utf-8")
    found = [line.split()[1] for line in text.splitlines() if line.startswith("nameserver")]
    return next((one for one in found if ":" not in one and not one.startswith("127.")), "8.8.8.8")
