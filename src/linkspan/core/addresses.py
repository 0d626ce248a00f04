"""IP prefixes and MAC addresses as frozen values; only this module uses ``ipaddress``."""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import re
import socket

import msgspec

from linkspan.core.errors import Invalid

FAMILIES = (4, 6)
BITS = {4: 32, 6: 128}
HIDDEN = "none"
"""Written instead of an address if no host can contact this one first."""
GATEWAY_MAC = "02:4c:53:00:00:01"
"""Default MAC of the switches' virtual gateway (SDN): locally administered (RFC 7042 2.1), used by no device."""
_PLACE = re.compile(r"(?:([0-9.]+)|\[([0-9a-fA-F:.]+)\]):([0-9]{1,5})")
SOCKET_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


class Prefix(msgspec.Struct, frozen=True, gc=False, order=True):
    """An address with a prefix length; ``packed`` is 4 or 16 bytes in network order, host bits allowed."""

    packed: bytes
    length: int

    @property
    def family(self) -> int:
        """Return 4 or 6."""
        return 4 if len(self.packed) == 4 else 6

    @property
    def address(self) -> str:
        """Return the address without length, as text."""
        return socket.inet_ntop(SOCKET_FAMILY[self.family], self.packed)

    @property
    def size(self) -> int:
        """Return the number of addresses in the prefix."""
        return 1 << (BITS[self.family] - self.length)

    @property
    def first(self) -> int:
        """Return the lowest address as an integer (host bits cleared)."""
        value = int.from_bytes(self.packed, "big")
        return value >> (shift := BITS[self.family] - self.length) << shift

    def network(self) -> Prefix:
        """Return the prefix with its host bits cleared."""
        return Prefix(self.first.to_bytes(len(self.packed), "big"), self.length)

    def at(self, offset: int) -> Prefix:
        """Return the address at ``offset`` from the first one, with this prefix's length."""
        return Prefix((self.first + offset).to_bytes(len(self.packed), "big"), self.length)

    def single(self) -> Prefix:
        """Return the address as /32 or /128."""
        bits = len(self.packed) * 8
        return self if self.length == bits else Prefix(self.packed, bits)

    def holds(self, other: Prefix) -> bool:
        """Return whether ``other`` is completely inside this prefix."""
        size = len(self.packed)
        if size != len(other.packed) or self.length > other.length:
            return False
        rest = size * 8 - self.length
        return int.from_bytes(self.packed, "big") >> rest == int.from_bytes(other.packed, "big") >> rest

    def overlaps(self, other: Prefix) -> bool:
        """Return whether any address is in both."""
        return self.holds(other) or other.holds(self)

    def __str__(self) -> str:
        return f"{self.address}/{self.length}"


_EXAMPLES = "write it like 10.244.0.0/16, 10.244.0.5 or fd00:244::/64"


def _parsed(text: str) -> Prefix:
    """Parse ``10.0.0.0/8``, ``10.1.2.3`` (a /32) or the same for IPv6; keep host bits.

    Raises Invalid with the text.
    """
    address, slash, length = text.partition("/")
    family = 6 if ":" in text else 4
    try:  # the C library's parser takes a tenth of ipaddress's time, and a thousand peers are 3,000 texts
        packed = socket.inet_pton(SOCKET_FAMILY[family], address)
        if not slash:
            return Prefix(packed, BITS[family])
        if length.isascii() and length.isdigit() and int(length) <= BITS[family]:
            return Prefix(packed, int(length))
    except (OSError, ValueError):
        pass  # refused below, with a message
    try:
        parsed = ipaddress.ip_interface(text)
    except ValueError as error:
        raise Invalid(f"{text!r} is not an IP address or prefix", _EXAMPLES) from error
    if "%" in text:
        raise Invalid(f"{text!r} has a zone", "give the address without %ZONE")
    return Prefix(parsed.packed, parsed.network.prefixlen)


prefix = functools.lru_cache(maxsize=8192)(_parsed)
"""The same, for what is asked for again: a thousand hosts' blocks and addresses in a few networks. 0.2 KB for each."""


def place(text: str) -> tuple[Prefix, int]:
    """Parse an address with or without a port: ``203.0.113.7:51820``, ``[2001:db8::7]:51820``; port 0 without one.

    Raises Invalid.
    """
    match = _PLACE.fullmatch(text)
    address, port = (match[1] or match[2], int(match[3])) if match else (text, 0)
    if port > 65535 or (match and not port):
        raise Invalid(f"{text!r} has no port from 1 to 65535")
    return prefix(address).single(), port


def pool(text: str) -> Prefix:
    """Parse a pool: a prefix without host bits. Raises Invalid with the prefix that was probably meant."""
    parsed = prefix(text)
    if parsed.network() != parsed:
        raise Invalid(f"pool {text} has host bits set", f"did you mean {parsed.network()}?")
    if "/" not in text:
        raise Invalid(f"pool {text} has no prefix length", f"write it like {text}/24")
    for special, what in _SPECIAL.items():
        if parsed.overlaps(prefix(special)):
            hint = "use a private range, for example 10.244.0.0/16 or fd00:244::/64"
            raise Invalid(f"pool {text} overlaps with {special}, which is {what}", hint)
    return parsed


_SPECIAL = {  # RFC 6890 and the IANA registries that continue it
    "0.0.0.0/8": "this host",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
    "::/127": "this host and loopback",
    "::ffff:0:0/96": "IPv4 in IPv6",
    "fe80::/10": "link-local",
    "ff00::/8": "multicast",
}
"""Ranges from which no container can have an address."""


_OF_NO_HOST = {
    family: [
        (found.packed, found.at(found.size - 1).packed, text)
        for text, found in ((text, prefix(text)) for text in _SPECIAL if text != "169.254.0.0/16")
        if found.family == family
    ]
    for family in BITS
}
"""By family: first and last address of the ranges in which no other host can be reached. Those are the ranges above,
except IPv4's link-local one, which some underlays use. Bytes, because each record of an endpoint is checked by them."""
_SUSPECTS = {
    BITS[family] // 8: frozenset(number for first, last, _ in ranges for number in range(first[0], last[0] + 1))
    for family, ranges in _OF_NO_HOST.items()
}
"""By the length of addresses, in bytes: the first bytes of those in these ranges."""


def host_address(text: str) -> Prefix:
    """Parse an address that another host may have, with or without a prefix length. Raises Invalid.

    It is not cached: a list of 100,000 endpoints would leave none of the others.
    """
    found = _parsed(text)
    packed = found.packed
    if packed[0] in _SUSPECTS[len(packed)]:
        for first, last, special in _OF_NO_HOST[found.family]:
            if first <= packed <= last:
                raise Invalid(f"{text} is in {special}, which is {_SPECIAL[special]}: other hosts cannot reach it")
    return found


def mac_text(packed: bytes) -> str:
    """Return six bytes as aa:bb:cc:dd:ee:ff."""
    return packed.hex(":")


def mac(text: str) -> bytes:
    """Parse aa:bb:cc:dd:ee:ff into six bytes; refuse multicast and all-zero MACs with Invalid."""
    try:
        packed = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        packed = b""
    if len(packed) != 6:
        raise Invalid(f"{text!r} is not a MAC address", "write it as 02:00:0a:f4:00:02")
    if packed[0] & 1 or not any(packed):
        raise Invalid(f"{text} is not a unicast MAC address", "the first byte must be even")
    return packed


def derived_mac(*seed: str) -> bytes:
    """Return a locally administered unicast MAC that is always the same for the same seed.

    So an address that is given again has the same MAC, and no neighbour cache has a wrong one.
    """
    digest = bytearray(hashlib.blake2b("\0".join(seed).encode(), digest_size=6).digest())
    digest[0] = (digest[0] & 0xFC) | 0x02  # RFC 7042 2.1: local bit set, group bit clear
    return bytes(digest)


def link_local(packed_mac: bytes) -> Prefix:
    """Return the EUI-64 link-local address (RFC 4291 appendix A) that the kernel gives to a link with this MAC."""
    eui = bytes([packed_mac[0] ^ 2]) + packed_mac[1:3] + b"\xff\xfe" + packed_mac[3:]
    return Prefix(b"\xfe\x80" + bytes(6) + eui, 128)


def whole(family: int) -> Prefix:
    """Return 0.0.0.0/0 or ::/0."""
    return Prefix(bytes(BITS[family] // 8), 0)
