"""ICMP requests: the messages that begin a flow, by one name and number for both families.

Connection tracking begins a flow with these alone (valid_new in net/netfilter/nf_conntrack_proto_icmp.c and _icmpv6.c).
Answers belong to the flow of their request, errors to the flow that they are about.
"""

from __future__ import annotations

from collections.abc import Mapping

ECHO = 8
"""The number of an echo request, for both families: ping."""
REQUESTS: Mapping[int, Mapping[int, str]] = {
    ECHO: {4: "echo-request", 6: "echo-request"},
    13: {4: "timestamp-request"},
    15: {4: "info-request"},
    17: {4: "address-mask-request"},
}
"""By IPv4's type: nft's name for the request in each family that has it."""
NUMBERS: Mapping[str, int] = {names[4]: number for number, names in REQUESTS.items()}
"""The same numbers by name."""
_ECHO_6 = 128
"""The type of ICMPv6's echo request (RFC 4443, 4.1)."""


def request(family: int, type_: int) -> int:
    """Return the number of the request that a message of this type is, 0 if it is none."""
    number = type_ if family == 4 else ECHO if type_ == _ECHO_6 else 0
    return number if number in REQUESTS else 0


def name(number: int) -> str:
    """Return the name of a request by its number."""
    return REQUESTS[number][4]
