"""Reasons why an IPsec connection is down, from the log of strongSwan's daemon.

The daemon tells each side only its part: the side that refuses knows the reason, the other side learns only
of the refusal. So a reason names the peer, and says if only the peer knows more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

_LINE = re.compile(r"(\d+) \d+\[\w+\] <(ls-[^|>]+)\|\d+> (.*)")
FRESH = 60.0
"""Seconds for which a reason counts: the daemon retries at least every quarter of that."""


class Said(msgspec.Struct, frozen=True):
    """A line of the log that is about a connection."""

    at: float
    connection: str
    text: str


class Reason(msgspec.Struct, frozen=True):
    """The reason; a lower ``rank`` says more."""

    at: float
    rank: int
    why: str
    fix: str


def said(log: str) -> list[Said]:
    """Return the lines of a log that are about a connection of ours."""
    return [Said(float(m[1]), m[2], m[3]) for line in log.splitlines() if (m := _LINE.match(line))]


_KNOWN: Final = (
    (r"certificate was revoked on (?P<a>.*?)(?:, reason: (?P<b>.*))?$", "{peer}'s certificate was revoked on {a}",
     "give {peer} a new certificate (ipsec.certificate, ipsec.key)"),
    (r"subject certificate invalid \(valid from (?P<a>.*) to (?P<b>.*)\)",
     "{peer}'s certificate is valid from {a} to {b}, and by this host's clock that is not now",
     "renew it, or set the clock of this host (timedatectl)"),
    (r"issuer certificate invalid \(valid from (?P<a>.*) to (?P<b>.*)\)",
     "the authority of {peer}'s certificate is valid from {a} to {b}, and by this host's clock that is not now",
     "renew it, or set the clock of this host (timedatectl)"),
    (r"no issuer certificate found for \"(?P<a>.*)\"", "{peer}'s certificate ({a}) is signed by another authority",
     "give both hosts certificates of one authority, and that authority's as ipsec.ca"),
    (r"constraint check failed: (?:RULE_)?CRL|constraint requires .*(?:revocation|CRL)",
     "no valid revocation list covers {peer}'s certificate",
     "install a newer list at ipsec.crl"),
    (r"constraint check failed: identity '(?P<a>.*)' required", "{peer}'s certificate is for another host",
     "its subjectAltName has to have DNS:{a}"),
    (r"no private key found for '(?P<a>.*)'", "this host's certificate is not for {a}, or ipsec.key is not its",
     "its subjectAltName has to have DNS:{a}"),
    (r"no shared key found", "this host has no shared key for {peer}", "set ipsec.psk-file on both, or on none"),
    (r".*MAC mismatched", "{peer} has another shared key", "put one and the same into ipsec.psk-file of all hosts"),
    (r"no trusted \S+ public key found for '(?P<a>.*)'", "this host does not trust {peer}'s certificate",
     "compare ipsec.ca of both hosts, and the certificate's subjectAltName with {a}"),
    (r"signature validation failed", "{peer}'s certificate is not its own: the signature is wrong",
     "ipsec.key of {peer} has to belong to its ipsec.certificate"),
    (r"peer requested EAP, config unacceptable", "one of the hosts has a shared key, and the other certificates",
     "set ipsec.psk-file for all hosts, or for none"),
    (r"received AUTHENTICATION_FAILED notify error", "{peer} refuses this host",
     "`linkspan status` on {peer} shows why"),
    (r"received NO_PROPOSAL_CHOSEN notify error", "{peer} knows nothing of this host (yet)", "is its agent running?"),
    (r"received TS_UNACCEPTABLE notify", "{peer} does not agree on the prefixes (yet)", "is its agent running?"),
    (r"giving up after|retransmit \d+ of request", "{peer} does not answer",
     "is it up, and do UDP ports 500 and 4500 pass? `linkspan doctor --peers` tests that"),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern), why, fix) for pattern, why, fix in _KNOWN)


def reasons(lines: Iterable[Said], before: dict[str, Reason]) -> dict[str, Reason]:
    """Return by connection the most precise of the recent reasons; the caller replaces ``{peer}``."""
    found = dict(before)
    for line in lines:
        for rank, (pattern, why, fix) in enumerate(_COMPILED):
            if match := pattern.match(line.text):
                named = {key: value or "" for key, value in match.groupdict().items()}
                last = found.get(line.connection)
                if last is None or rank <= last.rank or line.at - last.at > FRESH:
                    named["peer"] = "{peer}"
                    found[line.connection] = Reason(line.at, rank, why.format(**named), fix.format(**named))
                break
    return found
