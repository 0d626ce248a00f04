"""Validity: the times of a certificate, when it is renewed, and when somebody must be told.

It reads the few fields of a certificate that it needs by itself (X.690, RFC 5280 section 4.1): every agent looks at its
certificate, and ``cryptography`` would cost each 10 MB.
"""

from __future__ import annotations

import binascii
import datetime
import hashlib
import ssl

import msgspec

from linkspan.core.errors import Invalid

SKEW_SECONDS = 3600.0
"""How long before its making a certificate is valid: the clocks of hosts differ."""
FIRST, LAST = 0.5, 0.8
"""Parts of its life between which a certificate is renewed, at a moment that is random and stays the same."""
LATE = 0.9
"""The part of its life after which a certificate that is still there is a problem."""
_SPREAD = 1 << 32
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_SEQUENCE, _INTEGER, _UTC, _GENERALIZED, _VERSION = 0x30, 0x02, 0x17, 0x18, 0xA0


class Validity(msgspec.Struct, frozen=True):
    """A certificate's serial number, and from when until when it is valid (seconds since the epoch)."""

    serial: int
    begin: float
    end: float

    @property
    def made(self) -> float:
        """Return when it was made."""
        return min(self.begin + SKEW_SECONDS, self.end)

    def at(self, part: float) -> float:
        """Return when this part of its life is over."""
        return self.made + part * (self.end - self.made)

    @property
    def due(self) -> float:
        """Return when it is renewed. The serial number is random: so hosts that joined at once do not come at once."""
        return self.at(FIRST + (LAST - FIRST) * (self.serial % _SPREAD) / _SPREAD)


def parsed(pem: bytes) -> Validity:
    """Return the validity of the first certificate of a text. Raises Invalid if it is none."""
    try:
        der = ssl.PEM_cert_to_DER_cert(certificates_of(pem)[0].decode("ascii"))
        at, _ = _element(der, 0, _SEQUENCE)
        at, _ = _element(der, at, _SEQUENCE)
        if der[at] == _VERSION:
            _, at = _element(der, at, _VERSION)
        begin, at = _element(der, at, _INTEGER)
        serial = int.from_bytes(der[begin:at], "big")
        for _ in range(2):  # the signature's algorithm, and the issuer
            _, at = _element(der, at, _SEQUENCE)
        at, _ = _element(der, at, _SEQUENCE)
        first, at = _time(der, at)
        return Validity(serial, first, _time(der, at)[0])
    except (ValueError, IndexError, binascii.Error, UnicodeDecodeError) as error:
        raise Invalid("this is no certificate") from error


def certificates_of(pem: bytes) -> list[bytes]:
    """Return the certificates of a text, each as PEM; what is between them does not count."""
    found = []
    for part in pem.split(_END)[:-1]:
        begin = part.find(_BEGIN)
        if begin >= 0:
            found.append(part[begin:] + _END + b"\n")
    return found


def fingerprints(pem: bytes) -> tuple[str, ...]:
    """Return the SHA-256 of each certificate of a text, in hex. Raises Invalid if one is none."""
    try:
        ders = [ssl.PEM_cert_to_DER_cert(one.decode("ascii")) for one in certificates_of(pem)]
    except (ValueError, binascii.Error) as error:
        raise Invalid("this is no certificate") from error
    return tuple(hashlib.sha256(der).hexdigest() for der in ders)


def _element(der: bytes, at: int, *tags: int) -> tuple[int, int]:
    """Return where the content of the element at a place begins, and where it ends. Raises ValueError."""
    tag, length, begin = der[at], der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + count]), begin + count
    if tag not in tags or begin + length > len(der):
        raise ValueError
    return begin, begin + length


def _time(der: bytes, at: int) -> tuple[float, int]:
    """Return a time, and where it ends."""
    begin, end = _element(der, at, _UTC, _GENERALIZED)
    text = der[begin:end].decode("ascii")
    if der[at] == _UTC:  # years from 50 on are of the last century (RFC 5280 section 4.1.2.5.1)
        text = ("19" if text >= "50" else "20") + text
    moment = datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC)
    return moment.timestamp(), end
