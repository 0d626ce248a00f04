"""WireGuard states: the host's one device, a host's settings for it, and what serves it here."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.core.errors import Invalid
from linkspan.core.program import Program
from linkspan.core.states.host import Key, State

DEVICE = "lswg"
PORT = 51820
"""What WireGuard's own documents use (wg(8)); no number is registered."""
KEEPALIVE = 25
"""Seconds: below the 30 after which NATs may forget a UDP flow (RFC 4787 section 4.3). It is not only for
NATs: with it a restarted device makes its sessions at once, and nobody waits 15 s until silence is
noticed."""
SHOWN = 10
"""Characters of a public key that distinguish it from others, for people."""


_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
"""32 bytes in base64 (RFC 4648): the last character has four bits, and two that are zero."""


def key_id(public: str) -> str:
    """Return a public key's name for people."""
    return public[:SHOWN]


def check_key(public: str) -> None:
    """Refuse, by Invalid, an invalid public key: `wg` would then reject the whole command."""
    if not _KEY.fullmatch(public):
        raise Invalid(f"{public[:64]!r} is no WireGuard key", "a key is 32 bytes in base64")


class Tools(Program, frozen=True):
    """Keys and programs of a host for WireGuard: its ``public`` key and, while it changes, the ``next`` one.

    ``file`` has the private key. ``program`` is the command that starts the device in user space, () if the
    kernel has WireGuard. ``problem`` says why there is no device, ``unusable`` why the key's file cannot be
    used, ``unshared`` why the file of the shared key cannot be used. A device that has the key already keeps
    it.
    """

    public: str = ""
    next: str = ""
    file: str = ""
    program: tuple[str, ...] = ()
    problem: str = ""
    unusable: str = ""
    unshared: str = ""
    hint: str = ""


class Settings(msgspec.Struct, frozen=True):
    """A host's settings: its port, the seconds between keepalives, and the file of the key that all hosts share."""

    port: int = PORT
    keepalive: int = KEEPALIVE
    shared_file: str = ""


_NUMBERS = {"wireguard.port": range(1, 65536), "wireguard.keepalive": range(65536)}
_FILE = "wireguard.preshared-key-file"


def settings(given: Mapping[str, str]) -> Settings:
    """Return a host's WireGuard settings. Raises Invalid with the setting's name."""
    numbers = {}
    for key, value in given.items():
        if not key.startswith("wireguard.") or not value:
            continue
        if key not in _NUMBERS and key != _FILE:
            raise Invalid(f"setting {key} is unknown", f"the known ones are {', '.join((*_NUMBERS, _FILE))}")
        if key in _NUMBERS:
            allowed = _NUMBERS[key]
            if not (value.isascii() and value.isdigit() and len(value) < 6 and int(value) in allowed):
                raise Invalid(f"setting {key}={value} is no number from {allowed[0]} to {allowed[-1]}")
            numbers[key] = int(value)
    path = given.get(_FILE, "")
    if path and not path.startswith("/"):
        raise Invalid(f"setting {_FILE}={path} is no absolute path", "it is a file on every host, of mode 0600")
    return Settings(numbers.get("wireguard.port", PORT), numbers.get("wireguard.keepalive", KEEPALIVE), path)


class WireguardKey(State, frozen=True, gc=False):
    """The device's own configuration: the private key of ``public``, its port, and the MTU.

    wireguard-go gives its device an MTU of its own when it starts.
    """

    device: str
    public: str
    port: int
    mtu: int

    @property
    def key(self) -> Key:
        return ("WireguardKey", self.device)


class WireguardPeer(State, frozen=True, gc=False):
    """A host that the device knows, by its public key.

    ``endpoint`` is the first address to send to (``192.0.2.2:51820``), '' if the peer contacts this host
    itself; it may roam from there. ``shared_file`` has the additional key that is shared with it.
    """

    device: str
    public: str
    endpoint: str = ""
    keepalive: int = 0
    shared_file: str = ""

    @property
    def key(self) -> Key:
        return ("WireguardPeer", self.device, self.public)


class AllowedIp(State, frozen=True, gc=False):
    """The peer of a prefix: packets to the prefix are encrypted for it, and only it may send from there."""

    device: str
    prefix: Prefix
    public: str

    @property
    def key(self) -> Key:
        return ("AllowedIp", self.device, self.prefix.packed, self.prefix.length)
