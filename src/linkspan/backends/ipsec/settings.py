"""IPsec settings of a host, parsed once: its credentials, and how often keys are renewed; pure.

Settings name files and never have their contents: a shared key of all hosts (``ipsec.psk-file``), or a
certificate for each host (``ipsec.certificate`` and ``ipsec.key``) by an authority that all trust
(``ipsec.ca``), with ``ipsec.crl`` for revoked ones. A certificate is for one host: the host's name must be
among its subjectAltNames.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.model import Host
from linkspan.core.states.ipsec import Kind

PREFIX = "ipsec."

REKEY, PROBE = 3600, 5
"""Seconds: an ESP association lives an hour (swanctl.conf(5) has this default); a silent peer is asked after five."""

_FILES: dict[str, Kind] = {
    "psk-file": "psk",
    "certificate": "certificate",
    "key": "key",
    "ca": "ca",
    "crl": "crl",
}
_KNOWN = (*_FILES, "rekey", "probe")


class Ipsec(msgspec.Struct, frozen=True):
    """A host's settings; ``files`` are by kind."""

    files: dict[Kind, str]
    rekey: int = REKEY
    probe: int = PROBE

    @property
    def shared(self) -> bool:
        """Return whether hosts prove their identity by one key that all have."""
        return "psk" in self.files

    def credentials(self) -> Iterator[tuple[Kind, str]]:
        """Yield the credentials that the daemon loads."""
        yield from self.files.items()


def settings(host: Host) -> Ipsec:
    """Return a host's settings, complete or not. Raises Invalid with the setting's name."""
    given = {k.removeprefix(PREFIX): v for k, v in host.settings.items() if k.startswith(PREFIX) and v}
    for word in sorted(given.keys() - set(_KNOWN)):
        raise Invalid(
            f"setting {PREFIX}{word} is unknown", f"the known ones are {', '.join(PREFIX + k for k in _KNOWN)}"
        )
    files = {kind: _path(word, given[word]) for word, kind in _FILES.items() if word in given}
    if "psk" in files and len(files) > 1:
        other = next(word for word in given if word in _FILES and word != "psk-file")
        raise Invalid(
            f"settings {PREFIX}psk-file and {PREFIX}{other} exclude each other",
            "hosts prove their identity by a shared key or by certificates: unset one (KEY=)",
        )
    return Ipsec(
        files,
        _seconds("rekey", given.get("rekey", ""), REKEY, 20),
        _seconds("probe", given.get("probe", ""), PROBE, 1),
    )


def identity(host: Host) -> Ipsec:
    """Return a host's settings if they can prove its identity. Raises Unavailable if they cannot."""
    found = settings(host)
    missing = [word for word in ("certificate", "key", "ca") if _FILES[word] not in found.files]
    if found.shared or not missing:
        return found
    raise Unavailable(
        f"backend ipsec needs credentials of host {host.name}: {PREFIX}{missing[0]} is not set",
        f"linkspan host set {PREFIX}psk-file=FILE --all, or {PREFIX}certificate=, {PREFIX}key= and {PREFIX}ca= (FILEs)",
    )


def _path(word: str, text: str) -> str:
    if not text.startswith("/") or not text.isprintable() or '"' in text:
        raise Invalid(
            f"setting {PREFIX}{word}={text} is no path", "give an absolute path on each host"
        )
    return text


def _seconds(word: str, text: str, default: int, least: int) -> int:
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) >= least):
        raise Invalid(f"setting {PREFIX}{word}={text} is out of range", f"give {least} to 999999 seconds")
    return int(text)
