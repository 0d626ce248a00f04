"""Address of the page: where the server listens, by which names browsers may call it, and its certificate."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import msgspec
from cryptography import x509

from linkspan.core.addresses import prefix
from linkspan.core.errors import Invalid
from linkspan.core.remedies import reason, remedy

DEFAULT = "127.0.0.1:0"
"""Only this machine, at a free port."""
EVERY = "0.0.0.0", "::"
"""Addresses that stand for all of the machine's: browsers call the page by the certificate's names."""
_FORM = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):(\d{1,5})")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Place(msgspec.Struct, frozen=True):
    """Place to listen at: an address and a port, 0: a free one; ``tls`` and ``names`` are those of the certificate."""

    address: str
    port: int
    tls: ssl.SSLContext | None = None
    names: tuple[str, ...] = ()

    @property
    def scheme(self) -> str:
        """Return http or https."""
        return "http" if self.tls is None else "https"

    def authorities(self, port: int) -> tuple[str, ...]:
        """Return the values that the header Host may have, the one for links first; ``port`` is the real one."""
        own = f"[{self.address}]" if ":" in self.address else self.address
        addresses = [] if self.address in EVERY else [own]
        hosts = [*addresses, *(["localhost"] if _is_loopback(self.address) else []), *self.names]
        found = [f"{host}:{port}" for host in hosts]
        return (*found, *(hosts if port == _DEFAULT_PORTS[self.scheme] else ()))


def place(text: str, certificate: str = "", key: str = "") -> Place:
    """Return where ``--listen`` says. Raises Invalid; an address that others reach needs a certificate and its key."""
    match = _FORM.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        raise Invalid(f"--listen {text!r} is not ADDRESS:PORT", "write it like 127.0.0.1:8080 or [::1]:8080")
    address = prefix(match[1] or match[2]).address
    if bool(certificate) != bool(key):
        raise Invalid("a certificate and its key belong together", "give both: --cert FILE --key FILE")
    if not certificate:
        if not _is_loopback(address):
            raise Invalid(
                f"--listen {text}: other machines reach {address}, so the page needs TLS there",
                "give --cert FILE --key FILE, or listen on 127.0.0.1 and use `ssh -L`",
            )
        return Place(address, int(match[3]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for option, path in (("--cert", certificate), ("--key", key)):
        try:
            Path(path).read_bytes()
        except OSError as error:
            fix = f"correct {option}"  # what is in the place of a file that is only read is not moved away
            if isinstance(error, PermissionError):
                fix = remedy(error, Path(path), fix)
            raise Invalid(f"{option} {path}: {reason(error)}", fix) from error
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise Invalid(f"--cert {certificate} and --key {key}: {error.reason or error}", "are they a pair?") from error
    except OSError as error:  # OpenSSL would ask for the pass phrase
        why = f"--key {key} is encrypted, and no terminal answers with its pass phrase"
        raise Invalid(why, f"decrypt it: openssl pkey -in {key} -out FILE") from error
    names = _names(Path(certificate))
    if address in EVERY and not names:
        raise Invalid(f"--cert {certificate} names no host, and --listen no address", "listen on one address")
    return Place(address, int(match[3]), context, names)


def _names(certificate: Path) -> tuple[str, ...]:
    """Return the DNS names and addresses for which a certificate is valid, as in a URL; wildcards name no host."""
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    dns = [name.lower() for name in names.get_values_for_type(x509.DNSName) if "*" not in name]
    addresses = [str(one) for one in names.get_values_for_type(x509.IPAddress)]
    return (*dns, *(f"[{one}]" if ":" in one else one for one in addresses))


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")
