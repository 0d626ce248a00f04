"""Authority keys: new authorities, their keys' way to the other voters, and the files of one step on one voter.

A voter needs the new keys to sign, and root's next password of etcd. They reach it through the vault, sealed with a key
that is made from root's present password: voters alone have that. The record is deleted when the rotation has ended.

``cryptography`` costs 10 MB, so this module is imported only while authorities change.
"""

from __future__ import annotations

import base64
import datetime
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from linkspan.cluster.founding import foundation, root_password
from linkspan.cluster.founding.authority_plan import (
    CLIENTS,
    NAMES,
    PEERS,
    SIGN,
    TRUST,
    RotationRecord,
    arranged,
)
from linkspan.cluster.founding.certificates import new_authority, new_key
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.cluster.founding.validity import certificates_of
from linkspan.core.errors import Unavailable
from linkspan.kernel.io.private_files import alone

NONCE = 12
"""Bytes, as AES-GCM takes them (NIST SP 800-38D section 8.2)."""


class NewAuthority(msgspec.Struct, frozen=True):
    """A new authority (PEM)."""

    certificate: str
    key: str


def make(files: TrustFiles, id_: str, kinds: tuple[str, ...]) -> RotationRecord:
    """Return a rotation in its first step, with new authorities of these kinds."""
    made = {}
    for kind in kinds:
        key = new_key()
        certificate = new_authority(key, NAMES[kind], datetime.datetime.now(datetime.UTC))
        made[kind] = NewAuthority(certificate.decode(), key.decode())
    root = root_password.new()
    return RotationRecord(
        id=id_,
        step=TRUST,
        begun=time.time(),
        authorities={kind: one.certificate for kind, one in made.items()},
        sealed=_sealed(files, id_, msgspec.json.encode(made)),
        root=root_password.digest(root),
        sealed_root=_sealed(files, _of_root(id_), root.encode()),
    )


def _of_root(id_: str) -> str:
    """Return what root's next password is sealed for: it is taken for nothing else."""
    return f"{id_}/root"


def _sealed(files: TrustFiles, purpose: str, text: bytes) -> str:
    nonce = os.urandom(NONCE)
    return base64.b64encode(nonce + AESGCM(_sealing(files)).encrypt(nonce, text, purpose.encode())).decode()


def _unsealed(files: TrustFiles, purpose: str, sealed: str) -> bytes:
    raw = base64.b64decode(sealed)
    return AESGCM(_sealing(files)).decrypt(raw[:NONCE], raw[NONCE:], purpose.encode())


def opened(files: TrustFiles, rotation: RotationRecord) -> tuple[Mapping[str, NewAuthority], str]:
    """Return the new authorities of a rotation, and root's next password, '' if it stays.

    Raises Unavailable if they cannot be read.
    """
    try:
        made = msgspec.json.decode(_unsealed(files, rotation.id, rotation.sealed), type=dict[str, NewAuthority])
        root = _unsealed(files, _of_root(rotation.id), rotation.sealed_root) if rotation.root else b""
        return made, root.decode()
    except (ValueError, InvalidTag, msgspec.DecodeError) as error:
        why = "the new authorities' keys in etcd cannot be opened with this voter's root password"
        raise Unavailable(why, f"compare {files.root_password} with that of the other voters") from error


def _sealing(files: TrustFiles) -> bytes:
    return HKDF(SHA256(), 32, None, b"linkspan authorities").derive(alone(str(files.root_password)))


def carry_out(
    files: TrustFiles, service: EtcdService, voter: Voter, host: str, rotation: RotationRecord, life: float
) -> bool:
    """Write a voter's files as a step has them; return whether etcd must restart. It may be repeated.

    Each file is changed in one step. While they change, an authority signs with the certificate that belongs to its
    key (``Authority``), so what is signed is always good.
    """
    made, root = opened(files, rotation)
    restart = False
    root_password.keep_next(files, root)
    for kind, new in made.items():
        authority, key, copy = _files(files, kind)
        if rotation.step == SIGN and alone(str(key)).strip() != new.key.encode().strip():
            files.put(key, new.key.encode())
        present = certificates_of(alone(str(authority)))
        wanted = arranged(rotation.step, present, certificates_of(new.certificate.encode())[0])
        if present != wanted:
            files.put(authority, b"".join(wanted))
        known = certificates_of(service.read(copy))
        if known != wanted:
            service.put(copy, b"".join(wanted))
        restart |= set(known) != set(wanted)
    if rotation.step == SIGN:
        signed = {CLIENTS: ("host", "server"), PEERS: ("peer",)}
        names = [name for kind in made for name in signed[kind]]
        foundation.sign_again(files, service, voter, host, names, life)
    return restart or rotation.step != SIGN


def _files(files: TrustFiles, kind: str) -> tuple[Path, Path, str]:
    """Return the files of an authority: its certificate, its key, and the copy that etcd reads."""
    if kind == CLIENTS:
        return files.authority, files.authority_key, "client-ca.pem"
    return files.peer_authority, files.peer_authority_key, "peer-ca.pem"
