"""Certificates: the two authorities, what they sign, and the list of what is revoked.

``cryptography`` is imported by this module alone, and this module only by what signs: most agents never do.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from linkspan.cluster.founding.validity import SKEW_SECONDS, certificates_of, parsed
from linkspan.core.errors import Denied, Invalid

SKEW = datetime.timedelta(seconds=SKEW_SECONDS)
YEARS = datetime.timedelta(days=3650)
"""How long an authority is valid, and its list of revoked certificates."""
LIFE_SECONDS = 365 * 86400.0
"""For how long an authority signs. Certificates renew themselves long before (``validity``), so a host may be off for
ten weeks at least before it must join again."""
URI = "linkspan://host/"
"""How the URI name of a host's certificate begins; the host's id follows."""


def new_key() -> bytes:
    """Return a new private key, as PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def request(key: bytes) -> bytes:
    """Return a signing request of a key, as PEM. It names nobody: the signer sets the names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(_private(key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def fingerprint(pem: bytes) -> str:
    """Return the SHA-256 of a certificate, in hex. Raises Invalid if it is none."""
    try:
        return x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()
    except ValueError as error:
        raise Invalid("this is no certificate") from error


def single(pem: bytes) -> bytes:
    """Return the first certificate of a text, as PEM, without anything else that the text has. Raises Invalid.

    Programs disagree about what a certificate in a text is: OpenSSL also takes labels that we do not look for. So a
    text from somebody else is trusted only after this.
    """
    try:
        return _pem(x509.load_pem_x509_certificate(pem))
    except ValueError as error:
        raise Invalid("this is no certificate") from error


class Requested:
    """A signing request that somebody sent: its key belongs to the sender, and nothing else of it counts."""

    def __init__(self, pem: bytes) -> None:
        """Read it (PEM). Raises Invalid if it is damaged, is not signed by its key, or its key is none of ours."""
        try:
            found = x509.load_pem_x509_csr(pem)
            sound, key = found.is_signature_valid, found.public_key()
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise Invalid("the signing request cannot be read") from error
        if not sound or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise Invalid("the signing request is not signed by a key of the curve P-256")
        self.key = key

    @property
    def key_hash(self) -> str:
        """Return the SHA-256 of the public key, in hex."""
        return _hash(self.key)


class Shown:
    """A host's certificate that somebody showed in a TLS handshake, which has proved that the key is theirs."""

    def __init__(self, der: bytes) -> None:
        """Read it (DER). Raises Denied if it is no host's."""
        try:
            found = x509.load_der_x509_certificate(der)
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
            key = found.public_key()
        except (ValueError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
            raise Denied("the certificate cannot be read") from error
        if len(uris) != 1 or not uris[0].startswith(URI) or not isinstance(key, ec.EllipticCurvePublicKey):
            raise Denied("the certificate is no host's")
        self.host = uris[0].removeprefix(URI)
        self.key = key
        self.pem = _pem(found).decode("ascii")
        self.serial = f"{found.serial_number:x}"

    @property
    def key_hash(self) -> str:
        """Return the SHA-256 of the public key, in hex."""
        return _hash(self.key)


def key_hash(key: bytes) -> str:
    """Return the SHA-256 of a private key's public key, in hex."""
    return _hash(_private(key).public_key())


def belongs(certificate: bytes, key: bytes) -> bool:
    """Return whether a certificate is of a private key. Raises Invalid if one of them cannot be read."""
    try:
        public = x509.load_pem_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Invalid("a certificate of ours cannot be read: it is damaged") from error
    return public == _private(key).public_key()


def new_authority(key: bytes, name: str, now: datetime.datetime) -> bytes:
    """Return the certificate of a new authority, as PEM."""
    private = _private(key)
    called = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "linkspan"),
                        x509.NameAttribute(NameOID.COMMON_NAME, name)])  # fmt: skip
    builder = _builder(called, private.public_key(), now, now - SKEW + YEARS).issuer_name(called)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(private.public_key())
    return _pem(builder.add_extension(identifier, critical=False).sign(private, hashes.SHA256()))


def listed(der: bytes) -> set[int]:
    """Return the serial numbers in a list of revoked certificates, as DER. Raises Invalid."""
    try:
        return {one.serial_number for one in x509.load_der_x509_crl(der)}
    except ValueError as error:
        raise Invalid("the list of revoked certificates cannot be read: it is damaged") from error


class Authority:
    """An authority that signs."""

    def __init__(self, certificate: bytes, key: bytes, life: float = LIFE_SECONDS) -> None:
        """Take its certificate and its private key, as PEM; what it signs is valid for ``life`` seconds.

        Beside its certificate there may be others, while authorities change. Raises Invalid if none is the key's.
        """
        own = next((one for one in certificates_of(certificate) if belongs(one, key)), None)
        if own is None:
            raise Invalid("an authority's certificate and its key do not belong to each other")
        self._certificate = x509.load_pem_x509_certificate(own)
        self._key = _private(key)
        self._life = datetime.timedelta(seconds=life)
        self._end = datetime.datetime.fromtimestamp(parsed(own).end, datetime.UTC)

    def server(self, key: bytes, addresses: Iterable[str], now: datetime.datetime) -> bytes:
        """Return a certificate for a server, which is also a client: etcd's gateway uses it for both."""
        names = [x509.IPAddress(ipaddress.ip_address(one)) for one in addresses]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._signed(_private(key).public_key(), names, usages, now)[0]

    def host(self, owner: Requested | Shown, host: str, now: datetime.datetime) -> tuple[bytes, int]:
        """Return a certificate for a host and the key that somebody has proved to have, and its serial number."""
        names = [x509.UniformResourceIdentifier(f"{URI}{host}")]
        return self._signed(owner.key, names, [ExtendedKeyUsageOID.CLIENT_AUTH], now)

    def signed(self, certificate: bytes) -> bool:
        """Return whether this authority signed a certificate (PEM). Raises Invalid if it is none."""
        return _issued(_pem(self._certificate), certificate)

    def root(self, key: bytes, now: datetime.datetime) -> bytes:
        """Return a certificate by which etcd takes its owner for its root, over gRPC: of an authority for one use."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
        return self._signed(_private(key).public_key(), [], [ExtendedKeyUsageOID.CLIENT_AUTH], now, subject)[0]

    def revoked(self, serials: Iterable[int], now: datetime.datetime) -> bytes:
        """Return the list of revoked certificates, as DER."""
        begin = now - SKEW
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._certificate.subject)
        builder = builder.last_update(begin).next_update(begin + YEARS)
        for serial in sorted(serials):
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(begin).build()
            builder = builder.add_revoked_certificate(one)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def _signed(
        self,
        key: ec.EllipticCurvePublicKey,
        names: Iterable[x509.GeneralName],
        usages: list[x509.ObjectIdentifier],
        now: datetime.datetime,
        subject: x509.Name | None = None,
    ) -> tuple[bytes, int]:
        subject = subject or x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "linkspan")])
        end = min(now + self._life, self._end)
        builder = _builder(subject, key, now, end).issuer_name(self._certificate.subject)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        named = [(x509.SubjectAlternativeName(names), False)] if (names := [*names]) else []
        for extension, critical in (
            *named,
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(authority=False), True),
            (x509.ExtendedKeyUsage(usages), False),
            (identifier, False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        made = builder.sign(self._key, hashes.SHA256())
        return _pem(made), made.serial_number


def signed_by(authorities: bytes, certificate: bytes) -> str:
    """Return the SHA-256 of the authority that signed a certificate (both PEM), '' if none of these did.

    Raises Invalid if one is no certificate.
    """
    return next((fingerprint(one) for one in certificates_of(authorities) if _issued(one, certificate)), "")


def _issued(authority: bytes, certificate: bytes) -> bool:
    try:
        signer, found = (x509.load_pem_x509_certificate(one) for one in (authority, certificate))
    except ValueError as error:
        raise Invalid("this is no certificate") from error
    try:
        found.verify_directly_issued_by(signer)
    except (InvalidSignature, ValueError, TypeError):  # the last two: its issuer has another name, or kind of key
        return False
    return True


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, end: datetime.datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(now - SKEW).not_valid_after(end)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Return a private key of ours. Raises Invalid if the file has none."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Invalid("a private key cannot be read: it is damaged") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Invalid("a private key is none of an elliptic curve")
    return key


def _hash(key: ec.EllipticCurvePublicKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
