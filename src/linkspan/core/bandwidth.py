"""Bandwidth limits: their syntax, their bounds, and the label that sets them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from linkspan.core.errors import Invalid
from linkspan.core.model import Bandwidth

LABEL = "linkspan.bandwidth"
"""The label of a container whose value is its limits: it can change while the container runs."""
LARGEST = 1 << 34
"""Bits: tc's struct tc_tbf_qopt has a burst in 32 bits of bytes, and rounding may need one more bit."""
LEAST = 1000
"""Bits a second that a user may write: at less, one packet of 1,500 bytes would take 12 s."""

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_RATE = re.compile(r"([0-9]{1,11})([kmg]?)", re.IGNORECASE)
"""In either case: Docker's command line writes all values of options in lower case."""
_SIZES = {unit.lower(): size for unit, size in _UNITS.items()}
_SYNTAX = "write it like in=20M,out=5M: bits a second that the container receives and sends; k, M and G are allowed"


def parse(text: str) -> Bandwidth:
    """Parse ``in=RATE,out=RATE``, either of which may be missing. Raises Invalid."""
    rates: dict[str, int] = {}
    for part in text.split(","):
        direction, equals, given = part.strip().partition("=")
        if not equals or direction not in ("in", "out"):
            raise Invalid(f"bandwidth {text!r} is not understood", _SYNTAX)
        if direction in rates:
            raise Invalid(f"bandwidth {text!r} has {direction}= twice", _SYNTAX)
        rates[direction] = rate(given)
    return Bandwidth(ingress_rate=rates.get("in", 0), egress_rate=rates.get("out", 0))


def rate(text: str) -> int:
    """Parse a rate such as ``20M``; return bits a second. Raises Invalid."""
    found = _RATE.fullmatch(text)
    if not found:
        raise Invalid(f"bandwidth {text!r} is not a rate", "write bits a second: 500k, 20M, 1G")
    bits = int(found[1]) * _SIZES[found[2].lower()]
    if not LEAST <= bits < LARGEST:
        raise Invalid(f"bandwidth {text!r} is out of range", "give 1k to 17G, or leave it out: then there is no limit")
    return bits


def followed(before: Mapping[str, str], after: Mapping[str, str], limits: Bandwidth | None) -> Bandwidth | None:
    """Return a container's limits after its labels changed: those of the label, and none once it is removed.

    ``limits`` are those until then; they stay if the label is as it was. Raises Invalid.
    """
    if before.get(LABEL) == after.get(LABEL):
        return limits
    try:
        return parse(after[LABEL]) if LABEL in after else None
    except Invalid as error:
        raise error.within(f"label {LABEL}") from error


def check(limits: Bandwidth) -> None:
    """Refuse, by Invalid, limits that no queueing discipline accepts; 0 is no limit."""
    for name in ("ingress_rate", "ingress_burst", "egress_rate", "egress_burst"):
        bits = getattr(limits, name)
        if not 0 <= bits < LARGEST:
            raise Invalid(f"bandwidth: {name} of {bits} bits is out of range", f"give 0 to {LARGEST - 1}")


def spelled(limits: Bandwidth) -> str:
    """Return the rates as ``parse`` reads them, "" if there is no limit. Bursts are left out."""
    rates = {"in": limits.ingress_rate, "out": limits.egress_rate}
    return ",".join(f"{direction}={_spelled(bits)}" for direction, bits in rates.items() if bits)


def _spelled(bits: int) -> str:
    """Return a rate with the largest unit that leaves no fraction."""
    return next(f"{bits // size}{unit}" for unit, size in reversed(_UNITS.items()) if bits % size == 0)
