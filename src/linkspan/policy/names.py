"""Names of peers: the DNS names that a policy may allow, and which of them an asked name is. Pure."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Container

from linkspan.core.dns_names import LONGEST, normal
from linkspan.core.errors import Invalid

WILDCARD = "*."
"""Begins a name that means all names below another one, at any depth, and not that one itself."""
_EXAMPLES = 'write api.example.com, or "*.example.com" for all names below it'


def name(text: str) -> str:
    """Return a name that a policy allows, as DNS has it: in small letters, without a final dot. Raises Invalid."""
    wild = text.startswith(WILDCARD)
    found = normal(text.removeprefix(WILDCARD))
    if not found or len(found) + len(WILDCARD) > LONGEST:
        hint = _EXAMPLES if text.isascii() else "write letters beyond ASCII as DNS has them: xn--..."
        raise Invalid(f"{text!r} is no DNS name", hint)
    if "." not in found:
        raise Invalid(f"{text!r} has no domain: no server outside is asked for it", _EXAMPLES)
    if found.rpartition(".")[2].isdigit():
        raise Invalid(f"{text!r} is an address", f"write cidr: {found}")
    return f"{WILDCARD}{found}" if wild else found


def meant(asked: str, names: Container[str]) -> list[str]:
    """Return which of ``names`` mean a name that was asked for, itself or by a wildcard."""
    labels = asked.split(".")
    above = (f"{WILDCARD}{'.'.join(labels[number:])}" for number in range(1, len(labels)))
    return [one for one in (asked, *above) if one in names]


@functools.lru_cache(4096)
def digest(name: str) -> str:
    """Return what sets of nftables are called by: a name may be longer than a set's."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
