"""Differences of an object in words: the fields in which the observed state is not the desired one."""

from __future__ import annotations

from typing import Any

from linkspan.core.addresses import BITS, Prefix, mac_text
from linkspan.core.states.host import State

NOT_REPAIRED = (
    "linkspan repairs nothing inside a running container but limits of its bandwidth, because the container may "
    "change its own network: restart the container, detach and attach it, or type what `linkspan plan` shows; an "
    "agent that starts adds what is missing"
)
"""What to do about a difference inside a container."""
LONGEST = 80
"""Characters of a value; a longer one is not told."""
_OURS = "linkspan's"
"""What a file's content should be."""
_FAMILIES = {4: BITS[4], 16: BITS[6]}


def differences(observed: State | None, desired: State) -> list[dict[str, str]]:
    """Return ``field``, ``is`` and ``should`` of each field that differs; none if the object is missing.

    A field ``amiss`` has attributes that must be at the kernel's default.
    """
    if observed is None or type(observed) is not type(desired):
        return []
    pairs = [(name, getattr(observed, name), getattr(desired, name)) for name in desired.__struct_fields__]
    return [
        {"field": name, "is": _text(name, one), "should": _OURS if name == "content" else _text(name, other)}
        for name, one, other in pairs
        if one != other
    ]


def _text(field: str, value: Any) -> str:
    """Return a field's value as iproute2 writes it; who may see differences may not read each file."""
    if field == "content":
        return "other content"
    if field == "mode":
        return f"{value:04o}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes) and len(value) == 6:
        return mac_text(value)
    if isinstance(value, bytes) and len(value) in _FAMILIES:
        return Prefix(value, _FAMILIES[len(value)]).address
    if isinstance(value, bytes):
        return value.hex()[:LONGEST] or "none"
    text = ", ".join(_text(field, one) for one in value) if isinstance(value, tuple) else str(value)
    return (text if len(text) <= LONGEST else "another value") or "none"
