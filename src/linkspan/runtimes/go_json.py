"""JSON of Go programs: null stands for a missing value."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def without_null(value: object) -> object:
    """Return a decoded value without keys and list elements that are null. Raises RecursionError.

    Go writes null for each list, map and pointer that was not set, and reads it as nothing.
    """
    if isinstance(value, dict):
        return {key: without_null(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [without_null(one) for one in value if one is not None]
    return value


def decoded(text: bytes, kind: type[T]) -> T:
    """Parse JSON into a type, with null as absent. Raises msgspec.MsgspecError, UnicodeDecodeError, RecursionError."""
    return msgspec.convert(without_null(msgspec.json.decode(text)), kind)
