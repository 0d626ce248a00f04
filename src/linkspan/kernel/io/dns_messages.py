"""DNS messages (RFC 1035): a question, and what an answer says about addresses.

Whatever is not exactly as it should be makes a message none: the bytes may come from anywhere.
"""

from __future__ import annotations

import re
import struct

import msgspec

A, AAAA = 1, 28
"""Types of records (RFC 1035 3.2.2, RFC 3596 2.1)."""
KINDS = {4: A, 6: AAAA}
"""The type of the records with addresses of a family."""
NO_ERROR, NO_NAME = 0, 3
"""Codes of answers (RFC 1035 4.1.1)."""
_CNAME, _IN = 5, 1
_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_RESPONSE, _OPCODE, _TRUNCATED, _RECURSE, _CODE = 0x8000, 0x7800, 0x0200, 0x0100, 0x000F
_SIZES = {A: 4, AAAA: 16}
_LABEL = re.compile(rb"[A-Za-z0-9_-]{1,63}")
_LONGEST = 253
"""Characters of a name (RFC 1035 2.3.4: 255 octets with the lengths of its labels)."""
MOST_RECORDS = 256
"""Records of an answer that are read; a longer one is none."""
MOST_STEPS = 16
"""Aliases from the asked name to the one with addresses. Resolvers follow about as many."""
MOST_PARTS = 1024
"""Labels and pointers of a message that are read; one with more is none. Its author could hold up whoever reads it."""
_NEGATIVE = 1 << 31


class Answer(msgspec.Struct, frozen=True):
    """An answer to a question for addresses: what was asked, and what the name has, each with its TTL in seconds.

    An address that the asked name has by an alias has the shortest TTL on the way. Of a ``truncated`` answer nothing is
    read.
    """

    number: int
    name: str
    kind: int
    code: int
    truncated: bool = False
    addresses: tuple[tuple[bytes, int], ...] = ()


class _Malformed(Exception):
    """The bytes are no message, or one that nobody asks for."""


def question(number: int, name: str, kind: int) -> bytes:
    """Return a question for a name, which is as DNS has it; the server asks others."""
    labels = b"".join(bytes([len(one)]) + one for one in name.encode("ascii").split(b"."))
    return _HEADER.pack(number, _RECURSE, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, _IN)


def answer(message: bytes) -> Answer | None:
    """Return what a message answers about a name's addresses; None for any other message, and for malformed ones."""
    try:
        return _answer(message)
    except (_Malformed, struct.error):
        return None


def _answer(message: bytes) -> Answer:
    number, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    if not flags & _RESPONSE or flags & _OPCODE or questions != 1 or answers > MOST_RECORDS:
        raise _Malformed
    names = _Names(message)
    name, at = names.read(_HEADER.size)
    kind, klass = struct.unpack_from("!2H", message, at)
    if kind not in _SIZES or klass != _IN:
        raise _Malformed
    at += 4
    code = flags & _CODE
    if flags & _TRUNCATED:
        return Answer(number, name, kind, code, truncated=True)
    aliases: dict[str, tuple[str, int]] = {}
    addresses: dict[str, list[tuple[bytes, int]]] = {}
    for _ in range(answers):
        owner, at = names.read(at)
        found, klass, ttl, length = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        if at + length > len(message):
            raise _Malformed
        ttl = 0 if ttl & _NEGATIVE else ttl  # RFC 2181 section 8
        if klass == _IN and found == _CNAME:
            target, end = names.read(at)
            if end != at + length:
                raise _Malformed
            aliases.setdefault(owner, (target, ttl))
        elif klass == _IN and found == kind:
            if length != _SIZES[kind]:
                raise _Malformed
            addresses.setdefault(owner, []).append((message[at : at + length], ttl))
        at += length
    return Answer(number, name, kind, code, addresses=_followed(name, aliases, addresses))


def _followed(
    name: str, aliases: dict[str, tuple[str, int]], addresses: dict[str, list[tuple[bytes, int]]]
) -> tuple[tuple[bytes, int], ...]:
    """Return the addresses at the end of a name's aliases, each with the shortest TTL on the way."""
    shortest = _NEGATIVE
    for _ in range(MOST_STEPS):
        if name in addresses:
            return tuple((address, min(ttl, shortest)) for address, ttl in addresses[name])
        if name not in aliases:
            return ()
        name, ttl = aliases[name]
        shortest = min(shortest, ttl)
    return ()  # they lead in a circle


class _Names:
    """Reads the names of a message, and what several point to once: otherwise few bytes would be much work."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._known: dict[int, bytes] = {}
        """By the offset to which a name's first pointer leads: what is there."""
        self._parts = MOST_PARTS

    def read(self, at: int) -> tuple[str, int]:
        """Return the name at an offset, in small letters, and the offset behind it. Raises _Malformed.

        A pointer leads to what was before (RFC 1035 section 4.1.4), so there are no circles.
        """
        message, labels = self._message, list[bytes]()
        end, before, target, own = 0, at, 0, 0
        while True:
            if at >= len(message) or not self._parts:
                raise _Malformed
            self._parts -= 1
            length = message[at]
            if length >= 0xC0:
                if at + 2 > len(message):
                    raise _Malformed
                behind = at + 2
                at = struct.unpack_from("!H", message, at)[0] & 0x3FFF
                if at >= before:
                    raise _Malformed
                before = at
                if not end:
                    end, target, own = behind, at, len(labels)
                if (known := self._known.get(at)) is not None:
                    labels += [known] if known else []
                    break
                continue
            if not length:
                break
            label = message[at + 1 : at + 1 + length]
            if not _LABEL.fullmatch(label) or len(label) != length:
                raise _Malformed
            labels.append(label)
            at += 1 + length
        whole = b".".join(labels)
        if len(whole) > _LONGEST:
            raise _Malformed
        if end:
            self._known[target] = b".".join(labels[own:])
        return whole.decode("ascii").lower(), end or at + 1
