"""Errors of linkspan, in one tree.

    LinkspanError
    ├── Invalid       the request itself is wrong: a bad name, address, option
    ├── NotFound      the object named does not exist
    ├── Conflict      something else holds it: an address, a port, a name, a pool
    ├── Exhausted     there is none left: addresses, bridge ports
    ├── Denied        the caller may not do this
    ├── Unavailable   a part that is needed does not answer now: agent, store, disk
    │   └── Full      the store answers, and takes no writes: its quota is full
    └── KernelError   the kernel refused; carries the errno

Each says which object failed, why, and (``hint``) what to do. Errors read from outer to inner, joined by
colons: ``attach web to demo: add route 10.244.2.0/24 via 192.0.2.2: network unreachable``.
"""

from __future__ import annotations

import errno as _errno
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints


class LinkspanError(Exception):
    """An error that names the object, the cause and, in ``hint``, what to do."""

    code = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def told(self) -> str:
        """Return message and hint in one line."""
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def within(self, what: str) -> LinkspanError:
        """Return the same error, prefixed with the operation that failed."""
        outer = type(self).__new__(type(self))
        outer.__dict__.update(self.__dict__)
        outer.message = prefixed(what, self.message)
        outer.args = (outer.message,)
        return outer


class Invalid(LinkspanError):
    """The request itself is wrong, and a retry does not help."""

    code = "invalid"


class NotFound(LinkspanError):
    """The object named does not exist.

    ``records`` is how the key of its record in the store would begin, '' if it has none: another host may have written
    it, and this one not read it yet.
    """

    code = "not_found"

    def __init__(self, message: str, hint: str = "", *, records: str = "") -> None:
        super().__init__(message, hint)
        self.records = records


class Conflict(LinkspanError):
    """Something else has what was asked for; the message names the owner."""

    code = "conflict"


class Exhausted(LinkspanError):
    """Nothing is left of what was asked for."""

    code = "exhausted"


class Denied(LinkspanError):
    """The caller may not do this."""

    code = "denied"


class Unavailable(LinkspanError):
    """A part that is needed does not answer now; a retry later may help."""

    code = "unavailable"


class Rejected(Unavailable):
    """The store answers, and refuses the request itself."""


class Full(Unavailable):
    """The store answers, and takes no writes until it has space again; what it has can be read and deleted."""


class KernelError(LinkspanError):
    """The kernel refused; ``errno`` is its number."""

    code = "kernel"

    def __init__(self, message: str, errno: int = 0, hint: str = "") -> None:
        super().__init__(message, hint)
        self.errno = errno


_WORDS = {
    _errno.EEXIST: "it exists already",
    _errno.ENODEV: "no such device",
    _errno.ESRCH: "no such route or process",
    _errno.ENETUNREACH: "network unreachable",
    _errno.EPERM: "not permitted (is this run as root?)",
    _errno.EADDRNOTAVAIL: "no such address on this device",
}


def prefixed(what: str, message: str) -> str:
    """Return the message with its object or operation in front, unless it begins with it already."""
    return message if message.startswith((f"{what}:", f"{what} ")) else f"{what}: {message}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 endpoint, 2 endpoints."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def first_of(names: Sequence[str], most: int) -> str:
    """Return the first names of a list, at most ``most``, and how many more there are: a, b and 3 more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def closest(word: str, known: Iterable[str], otherwise: str) -> str:
    """Return a hint for an unknown name: the known names that look like it, or else another hint."""
    import difflib  # 0.2 MB, and most agents never see an unknown name

    found = difflib.get_close_matches(word, sorted(set(known)), n=2, cutoff=0.75)
    return f"did you mean {' or '.join(found)}?" if found else otherwise


def of_errno(number: int, what: str, detail: str = "") -> KernelError:
    """Turn an errno into a KernelError that names the operation.

    ``detail`` is the kernel's own extended message, if it gave one.
    """
    words = _WORDS.get(number) or os.strerror(number).lower()
    return KernelError(f"{what}: {words}{f' ({detail})' if detail else ''}", number)


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
"""Msgspec's words for types of values, and ours."""


def of_validation(error: Exception, kind: object, prefix: str = "", hint: str = "") -> Invalid:
    """Turn a decoder's error into one of ours that names the field and its allowed values.

    ``prefix`` precedes the field's name; ``hint`` is the fallback hint.
    """
    what, _, where = str(error).partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    words = re.sub(r"`(\w+)`", lambda found: _KINDS.get(found[1], found[1]), what)
    if value := re.fullmatch(r"Invalid enum value (.+)", what):
        words, hint = f"{value[1]} is unknown", f"give one of {', '.join(_choices(kind, path))}"
    elif missing := re.fullmatch(r"Object missing required field `(\w+)`", what):
        words = f"{missing[1]} is missing"
    field = f"{prefix}{path}: " if path else ""
    return Invalid(f"{field}{words[:1].lower()}{words[1:]}", hint)


def _choices(kind: Any, path: str) -> Iterable[str]:
    """Return the allowed words of the field at a path."""
    for name in re.sub(r"\[.*?\]", "", path).split("."):
        kind = get_type_hints(_element(kind)).get(name)
    return map(str, get_args(_element(kind)))


def _element(kind: Any) -> Any:
    """Return the element type of a list, or the value type of a dictionary; any other type unchanged."""
    while (origin := get_origin(kind)) is not None and origin is not Literal:
        kind = [one for one in get_args(kind) if one is not Ellipsis][-1]
    return kind
