"""The network between virtual hosts: a switch in a namespace of its own, and one who is no host of ours."""

from __future__ import annotations

import contextlib
import subprocess

from support.runtimes.virtual_host import VirtualHost

CLIENT = "192.0.2.99"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Segment:
    """A switch, with a cable for each host, and a client's namespace."""

    def __init__(self, name: str) -> None:
        self.switch, self.client = f"{name}-switch", f"{name}-client"
        for netns in (self.switch, self.client):
            _ip("netns", "add", netns)
        _ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "br0", "up")
        self._cable(self.client, CLIENT)

    def plug(self, host: VirtualHost, address: str) -> None:
        """Give a host its cable and address; its agent uses them."""
        self._cable(host.name, address)
        host.settings["underlay"] = "eth0"

    def _cable(self, netns: str, address: str) -> None:
        port = "p" + address.rpartition(".")[2]
        ends = (port, "type", "veth", "peer", "name", "eth0", "netns", netns)
        _ip("-n", self.switch, "link", "add", *ends)
        _ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
        _ip("-n", netns, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", netns, "link", "set", "eth0", "up")

    def fetched(self, url: str) -> str:
        """Return what the client gets from a web server, "" where it gets nothing."""
        fetch = ["ip", "netns", "exec", self.client, "busybox", "wget", "-q", "-T", "5", "-O", "-", url]
        return subprocess.run(fetch, capture_output=True, text=True, check=False).stdout.strip()

    def close(self) -> None:
        """Take the namespaces away, and the cables with them."""
        for netns in (self.client, self.switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", netns)
