"""A voter's files in each step of a rotation, and the new keys' way through the vault."""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster.founding import authority_keys, certificates, foundation
from linkspan.cluster.founding.authority_plan import CLIENTS, KINDS, PEERS, SIGN, STEPS, TRUST, RotationRecord
from linkspan.cluster.founding.certificates import Authority, signed_by
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.cluster.founding.validity import fingerprints
from linkspan.core.errors import Invalid, Unavailable

VOTER = Voter("192.0.2.1")


@pytest.fixture
def files(tmp_path: Path) -> TrustFiles:
    """Give the files of a voter that has begun a cluster."""
    made = TrustFiles(tmp_path)
    made.secret(made.root_password)
    own = EtcdService(tmp_path, "h1", VOTER)
    foundation.make_authorities(made, own)
    foundation.make_server(made, own, VOTER, 3600)
    foundation.make_own(made, "h1", 3600)
    return made


def begun(files: TrustFiles, kinds: tuple[str, ...] = KINDS) -> RotationRecord:
    """Return a rotation in its first step."""
    return authority_keys.make(files, "r1", kinds)


def carried_out(files: TrustFiles, rotation: RotationRecord, step: str) -> bool:
    """Carry a step out; return whether etcd must restart."""
    own = EtcdService(files.state_dir, "h1", VOTER)
    at = msgspec.structs.replace(rotation, step=step)
    return authority_keys.carry_out(files, own, VOTER, "h1", at, 3600)


def good(files: TrustFiles) -> None:
    """See that whoever trusts what the voter trusts accepts what it has, and that it can sign."""
    own = EtcdService(files.state_dir, "h1", VOTER)
    for authority, key, name in ((files.authority, files.authority_key, "server"),
                                 (files.peer_authority, files.peer_authority_key, "peer")):  # fmt: skip
        trusted = authority.read_bytes()
        assert signed_by(trusted, own.read(f"{name}.pem"))
        assert certificates.belongs(own.read(f"{name}.pem"), own.read(f"{name}.key"))
        Authority(trusted, key.read_bytes())
        assert fingerprints(own.read("client-ca.pem" if name == "server" else "peer-ca.pem")) == fingerprints(trusted)
    assert signed_by(files.authority.read_bytes(), files.certificate.read_bytes())
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(files.certificate, files.key)


def test_each_step_leaves_a_voter_that_all_accept_and_may_be_repeated(files: TrustFiles) -> None:
    """At the end the old authorities are gone, and etcd restarts where it trusts others."""
    old = fingerprints(files.authority.read_bytes()) + fingerprints(files.peer_authority.read_bytes())
    rotation = begun(files)
    new = {kind: fingerprints(text.encode()) for kind, text in rotation.authorities.items()}
    for step in STEPS:
        for _ in range(2):
            assert carried_out(files, rotation, step) == (step != SIGN)
            good(files)
        first = fingerprints(files.authority.read_bytes())[0]
        assert (first == new[CLIENTS][0]) == (step != TRUST)
    assert fingerprints(files.authority.read_bytes()) == new[CLIENTS]
    assert fingerprints(files.peer_authority.read_bytes()) == new[PEERS]
    assert not {*new[CLIENTS], *new[PEERS]} & {*old}


def test_a_voter_that_missed_the_first_step_makes_up_for_it(files: TrustFiles) -> None:
    """It trusts both, so its etcd restarts."""
    rotation = begun(files)
    assert carried_out(files, rotation, SIGN)
    good(files)
    assert len(fingerprints(files.authority.read_bytes())) == 2


def test_one_authority_alone_leaves_the_other_as_it_is(files: TrustFiles) -> None:
    """That of voters concerns no host."""
    before = [file.read_bytes() for file in (files.authority, files.authority_key, files.certificate)]
    rotation = begun(files, (PEERS,))
    for step in STEPS:
        carried_out(files, rotation, step)
        good(files)
    assert [file.read_bytes() for file in (files.authority, files.authority_key, files.certificate)] == before


def test_an_agent_that_ends_between_key_and_certificate_still_signs_well(files: TrustFiles) -> None:
    """The authority signs with the certificate that belongs to its key; without one it does not sign at all."""
    rotation = begun(files)
    carried_out(files, rotation, TRUST)
    made, _ = authority_keys.opened(files, rotation)
    files.put(files.authority_key, made[CLIENTS].key.encode())
    foundation.sign_again(files, EtcdService(files.state_dir, "h1", VOTER), VOTER, "h1", {"host"}, 3600)
    good(files)
    files.put(files.authority_key, certificates.new_key())
    with pytest.raises(Invalid, match="do not belong to each other"):
        foundation.authority(files)


def test_the_new_keys_are_sealed_with_what_voters_alone_have(files: TrustFiles) -> None:
    """Neither another password nor another rotation opens them, and nothing of them can be read."""
    rotation = begun(files)
    made, root = authority_keys.opened(files, rotation)
    secret = [root, *(one.key for one in made.values())]
    assert not any(one in msgspec.json.encode(rotation).decode() for one in secret)
    assert "PRIVATE" not in msgspec.json.encode(rotation).decode()
    other = msgspec.structs.replace(rotation, id="r2")
    cut = msgspec.structs.replace(rotation, sealed=rotation.sealed[:-8])
    for one in (other, cut, msgspec.structs.replace(rotation, sealed="x")):
        with pytest.raises(Unavailable, match="cannot be opened"):
            authority_keys.opened(files, one)
    files.put(files.root_password, b"another\n")
    with pytest.raises(Unavailable, match="root password"):
        authority_keys.opened(files, rotation)
