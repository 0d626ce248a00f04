"""WireGuard's nouns: what its one device on a host is made of, a host's settings for it, and what serves it here."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.core.errors import Invalid
from linkspan.core.states.host import Key, State
from linkspan.core.states.programs import Program

DEVICE = "lswg"
PORT = 51820
"""What WireGuard's own documents use (wg(8)); no number is registered."""
KEEPALIVE = 25
"""Seconds: below the 30 after which NATs may forget a UDP flow (RFC 4787 section 4.3). It is not for NATs alone: with
it a device that begins anew makes its sessions at once, and nobody waits 15 s until silence is noticed."""
SHOWN = 10
"""Characters of a public key that tell it from others, for people."""


_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
"""32 bytes in base64 (RFC 4648): the last character bears four bits, and two that are zero."""


def key_id(public: str) -> str:
    """Return a public key's name for people."""
    return public[:SHOWN]


def check_key(public: str) -> None:
    """Refuse, by Invalid, what is no public key: `wg` would take nothing of what it is given together with it."""
    if not _KEY.fullmatch(public):
        raise Invalid(f"{public[:64]!r} is no WireGuard key", "a key is 32 bytes in base64")


class Tools(Program, frozen=True):
    """What a host has for WireGuard: its ``public`` key and, while it changes, the ``next`` one.

    ``file`` has the private key. ``program`` is how to start the device in user space, () where the kernel has it.
    ``problem`` says why there is none, ``unusable`` why the key's file is no good, ``unshared`` why that of the key
    that all hosts share: a device that has the key already goes on.
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
    """Return what a host's settings say of WireGuard. Raises Invalid, naming the setting."""
    numbers = {}
    for key, value in given.items():
        if not key.startswith("wireguard.") or not value:
            continue
        if key not in _NUMBERS and key != _FILE:
            raise Invalid(f"setting {key} is unknown", f"there are {', '.join((*_NUMBERS, _FILE))}")
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
    """What the device is by itself: the private key that belongs to ``public``, its port, and the MTU.

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

    ``endpoint`` is where to send to first (``192.0.2.2:51820``), '' where the peer comes by itself; it may roam from
    there. ``shared_file`` has the key that is shared with it besides.
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
    """Which peer of the device has a prefix: what goes there is encrypted for it, and it alone may send from there."""

    device: str
    prefix: Prefix
    public: str

    @property
    def key(self) -> Key:
        return ("AllowedIp", self.device, self.prefix.packed, self.prefix.length)
