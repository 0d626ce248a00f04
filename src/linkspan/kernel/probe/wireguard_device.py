"""WireGuard device as `wg` shows it: for the driver, and for a trace or the metrics, which only read.

`wg` configures both kinds of device, the kernel's and wireguard-go's, and gets keys by files and standard
input, never as arguments. wireguard-go listens at a socket /run/wireguard/DEVICE.sock, which all network
namespaces of a machine would share: so ours sees a folder of the state folder there, and so does `wg`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, LinkspanError, NotFound, Unavailable
from linkspan.core.states.host import ALTNAME
from linkspan.core.states.wireguard import DEVICE
from linkspan.kernel.io import link_messages
from linkspan.kernel.io.netlink import Socket

_NONE, _OFF = "(none)", "off"
_APART = '[ -d /run/wireguard ] || mkdir -p /run/wireguard; mount --bind "$0" /run/wireguard && exec "$@"'
_SECRET = re.compile(r"[A-Za-z0-9+/]{42,}=?")


class Seen(msgspec.Struct):
    """A peer in the device; ``shared`` is the key itself."""

    public: str
    endpoint: str = ""
    shared: str = ""
    keepalive: int = 0
    handshake: int = 0
    allowed: set[Prefix] = msgspec.field(default_factory=set)


class Table(msgspec.Struct):
    """The whole device."""

    public: str
    port: int
    peers: dict[str, Seen]

    def holder(self, target: Prefix) -> Seen | None:
        """Return the peer with the longest prefix that contains a target."""
        fitting = [(p.length, peer) for peer in self.peers.values() for p in peer.allowed if p.holds(target)]
        return max(fitting, key=lambda one: one[0])[1] if fitting else None


class Device:
    """The device of this host.

    Any thread in the host's namespace may use it: each use has a socket and a process of its own.
    """

    def __init__(self, folder: Path, support: Callable[[], Support]) -> None:
        """``folder`` is where wireguard-go has its socket; ``support`` returns what serves the device."""
        self.folder = folder
        self._support = support

    def inside(self) -> tuple[str, ...]:
        """Return the words before a command that let it and wireguard-go share a socket folder."""
        if self._support().by != "user space":
            return ()
        return ("unshare", "--mount", "sh", "-c", _APART, str(self.folder))

    def table(self) -> Table | None:
        """Return the device as it is, None if none answers, or if it is not ours."""
        try:
            return parsed(self.wg("show", DEVICE, "dump")) if _is_ours() else None
        except (OSError, LinkspanError):
            return None

    def wg(self, *words: str, given: str = "") -> str:
        """Run `wg` and return what it prints. Raises NotFound, Unavailable or KernelError."""
        argv = [*self.inside(), "wg", *words]
        try:
            done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False, timeout=20)
        except FileNotFoundError as error:
            raise NotFound(f"{error.filename} is not installed", "install the package wireguard-tools") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"wg {words[0]} {DEVICE} does not end") from error
        if done.returncode:
            said = _SECRET.sub("***", "; ".join(done.stderr.split("\n")[:3]).strip("; "))
            raise KernelError(f"wg {words[0]} {DEVICE}: {said or 'it says nothing'}")
        return done.stdout


def _is_ours() -> bool:
    """Return whether a device with our name exists and is ours; use a socket of the calling thread's own."""
    route = Socket()
    try:
        return f"{ALTNAME}{DEVICE}" in link_messages.by_name(route, DEVICE).altnames
    finally:
        route.close()


def parsed(dump: str) -> Table:
    """Return what `wg show DEVICE dump` printed."""
    first, *rest = [line.split("\t") for line in dump.splitlines()]
    peers = {}
    for public, shared, endpoint, allowed, handshake, _, _, keepalive in rest:
        peers[public] = Seen(
            public,
            "" if endpoint == _NONE else endpoint,
            "" if shared == _NONE else shared,
            0 if keepalive == _OFF else int(keepalive),
            int(handshake),
            set() if allowed == _NONE else {prefix(text) for text in allowed.split(",")},
        )
    return Table("" if first[1] == _NONE else first[1], int(first[2]), peers)
