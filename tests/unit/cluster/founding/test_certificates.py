"""Certificates of linkspan's own etcd, judged by openssl: names, usages, times, and what is revoked."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from linkspan.cluster.founding.certificates import (
    Authority,
    Requested,
    key_hash,
    new_authority,
    new_key,
    request,
)
from linkspan.core.errors import Invalid

NOW = datetime.datetime(2026, 11, 30, 12, tzinfo=datetime.UTC)
TEN = datetime.timedelta(minutes=10)


def authority(name: str = "clients", now: datetime.datetime = NOW) -> tuple[bytes, Authority]:
    """Return a new authority's certificate, and the authority."""
    key = new_key()
    certificate = new_authority(key, name, now)
    return certificate, Authority(certificate, key)


def verified(folder: Path, ca: bytes, certificate: bytes, purpose: str, at: datetime.datetime, *more: str) -> str:
    """Return what ``openssl verify`` says of a certificate at a time."""
    (folder / "ca.pem").write_bytes(ca)
    (folder / "one.pem").write_bytes(certificate)
    argv = ["openssl", "verify", "-x509_strict", "-CAfile", str(folder / "ca.pem"), "-purpose", purpose]
    argv += ["-attime", str(int(at.timestamp())), *more, str(folder / "one.pem")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return "OK" if done.returncode == 0 else done.stdout + done.stderr


def test_a_hosts_certificate_is_for_clients_alone_and_names_its_id(tmp_path: Path) -> None:
    """It has no common name, and whatever the request names does not count."""
    ca, one = authority()
    made, serial = one.host(Requested(request(new_key())), "h1", NOW)
    found = x509.load_pem_x509_certificate(made)
    assert not found.subject.get_attributes_for_oid(x509.oid.NameOID.COMMON_NAME)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["linkspan://host/h1"]
    assert found.serial_number == serial
    assert verified(tmp_path, ca, made, "sslclient", NOW) == "OK"
    assert "unsuitable certificate purpose" in verified(tmp_path, ca, made, "sslserver", NOW)


def test_a_servers_certificate_is_for_both_and_for_its_address(tmp_path: Path) -> None:
    """The gateway of etcd is a client with it."""
    ca, one = authority()
    made = one.server(new_key(), ["192.0.2.1", "2001:db8::1"], NOW)
    assert verified(tmp_path, ca, made, "sslclient", NOW) == "OK"
    assert verified(tmp_path, ca, made, "sslserver", NOW, "-verify_ip", "192.0.2.1") == "OK"
    assert verified(tmp_path, ca, made, "sslserver", NOW, "-verify_ip", "2001:db8::1") == "OK"
    assert verified(tmp_path, ca, made, "sslserver", NOW, "-verify_ip", "192.0.2.2") != "OK"
    other, _ = authority("voters")
    assert verified(tmp_path, other, made, "sslclient", NOW) != "OK"


@pytest.mark.parametrize("apart", [-TEN, TEN])
def test_clocks_may_be_ten_minutes_apart(tmp_path: Path, apart: datetime.timedelta) -> None:
    """A host accepts what was just signed by another clock, and etcd accepts the host's."""
    ca, one = authority()
    made, _ = one.host(Requested(request(new_key())), "h1", NOW)
    assert verified(tmp_path, ca, made, "sslclient", NOW + apart) == "OK"
    assert verified(tmp_path, ca, one.server(new_key(), ["192.0.2.1"], NOW), "sslserver", NOW + apart) == "OK"


def test_a_revoked_certificate_is_refused_and_others_are_not(tmp_path: Path) -> None:
    """The list is DER, as etcd reads it."""
    ca, one = authority()
    (made, serial), (other, _) = (one.host(Requested(request(new_key())), name, NOW) for name in ("h1", "h2"))
    listed = x509.load_der_x509_crl(one.revoked([serial, 7], NOW))
    file = tmp_path / "crl.pem"
    file.write_bytes(listed.public_bytes(serialization.Encoding.PEM))
    options = ("-crl_check", "-CRLfile", str(file))
    assert "certificate revoked" in verified(tmp_path, ca, made, "sslclient", NOW, *options)
    assert verified(tmp_path, ca, other, "sslclient", NOW, *options) == "OK"


def test_a_request_is_signed_by_a_key_of_ours() -> None:
    """Others, damaged ones and those with a foreign signature are refused; the key is known by its hash."""
    key = new_key()
    assert Requested(request(key)).key_hash == key_hash(key)
    sound = request(key)
    subject = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    foreign: list[ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey] = [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ]
    wrong = [subject.sign(one, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) for one in foreign]
    der = bytearray(x509.load_pem_x509_csr(sound).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = subprocess.run(["openssl", "req", "-inform", "DER"], input=bytes(der), capture_output=True, check=False)
    for pem in (*wrong, forged.stdout, b"", b"\0", sound[:100], b"-----BEGIN CERTIFICATE REQUEST-----\nAA==\n"):
        with pytest.raises(Invalid, match="signing request"):
            Requested(pem)
