"""A lab with an encrypted network, whose underlay a stranger listens to and sends on."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

from linkspan.lab import commands, faults, record, sockets
from support.lab.migration_runs import HOSTS, MigratingRun
from support.lab.underlay_capture import PATTERN, Capture, Echoes
from support.polling import SHARED, until
from support.replay import replay

BACK_WITHIN = 5.0 * SHARED
"""Seconds: the promise after a crash of wireguard-go, or after the agent's start where that was gone, too."""

_HELD_BACK = """
table bridge held {
  chain forward {
    type filter hook forward priority 0;
    oifname "h1" ip protocol udp drop
  }
}
"""


class SecretRun(MigratingRun):
    """A lab whose underlay is listened to."""

    def capture(self) -> Capture:
        """Begin to listen on the switch."""
        found = record.load(self.name)
        own = [a for host in HOSTS for a in self.own(host)]
        addresses = [text.partition("/")[0] for c in found.containers for text in c.addresses]
        return Capture(found.switch, [*found.pools, "10.247.0.0/16"], [*addresses, *own])

    def own(self, host: str) -> list[str]:
        """Return a host's own addresses in its networks."""
        return [a for lease in self.host(host)["leases"] for a in lease["host_address"]]

    def wg(self, host: str, *words: str) -> str:
        """Run ``wg`` for a host's device, which is in user space here."""
        folder = self.folder / host / "state/wireguard/run"
        shown = ["sh", "-c", 'mount --bind "$0" /run/wireguard && exec "$@"', str(folder), "wg", *words]
        argv = ["ip", "netns", "exec", f"{self.name}-{host}", "unshare", "--mount", *shown]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def key(self, host: str) -> str:
        """Return the name of the key that a host has in force."""
        found: dict[str, str] = self.call(host, "GET", "/v1/keys")
        return found["key"]

    @contextlib.contextmanager
    def pinged(self, source: str, target: str) -> Iterator[None]:
        """Ping all the while, with a known payload; answers may be missing."""
        argv = ["ip", "netns", "exec", f"{self.name}-{source}", "ping", "-i", "0.05", "-s", "56", "-p", PATTERN]
        argv.append(self.address(target))
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
            try:
                yield
            finally:
                one.kill()

    def back(self, since: float, source: str = "c1", target: str = "c2") -> None:
        """Wait until a container is reached again, and hold that to the promise."""
        address = self.address(target)
        until(lambda: not self.silent(source, address), f"{source} reaches {target} again")
        assert time.monotonic() - since <= BACK_WITHIN + 1  # a ping that is not answered takes a second

    def takes_once(self, echoes: Echoes, encrypted: Callable[[bytes], bool]) -> None:
        """Hold that what h2 sends for c1 gets there once, whoever sends it again.

        It is held back at first, which shows that a stranger's packets do reach the host.
        """
        target, source = self.address("c1"), self.address("c2")
        switch = record.load(self.name).switch
        until(lambda: self.pings("c2", target), "c2 reaches c1")
        commands.run("nft", "-f", "-", given=_HELD_BACK, netns=switch)
        try:
            with self.capture() as capture:
                assert self.silent("c2", target)
        finally:
            commands.run("nft", "delete", "table", "bridge", "held", netns=switch)
        held = {f for f in capture.frames if encrypted(f) and f[26:30] == b"\xc0\0\2\2"}
        counted = echoes.look().count(source)
        with sockets.inside(switch):
            stranger = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with stranger:
            stranger.bind(("h1", 0))
            replay(stranger, held)
            until(lambda: echoes.look().count(source) == counted + 1, "what was held back comes, the first time")
            for _ in range(3):
                replay(stranger, held)
        assert self.pings("c3", target)  # what came before has been worked off
        assert echoes.look().count(source) == counted + 1

    def fails(self, host: str, failure: str) -> None:
        """Let a failure happen."""
        found = record.load(self.name)
        faults.do(found, found.host(host), failure)

    def mended(self, host: str) -> None:
        """Undo a host's failures."""
        found = record.load(self.name)
        faults.mend(found, found.host(host))

    def rotated(self, host: str) -> None:
        """Change a host's key, and wait until the next one is in force."""
        self.call(host, "POST", "/v1/keys")
        until(lambda: not self.call(host, "GET", "/v1/keys")["next"], f"{host} has another key")

    def told(self, host: str, *words: str) -> None:
        """Wait until a host's status has all of these words."""
        until(lambda: all(word in self.not_well(host) for word in words), f"{host} tells of {words}")
