"""Files that init makes: authorities that belong together, and a list of revoked certificates that is not emptied."""

from __future__ import annotations

import asyncio
import datetime
import os
import time
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509

from linkspan.cluster.founding import certificates, foundation, promotion
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.foundation import found, renew_revoked
from linkspan.cluster.founding.handover import Ready
from linkspan.cluster.founding.renewal import Renewal
from linkspan.cluster.founding.signer import REVOKED, Revoked
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.cluster.founding.validity import parsed
from linkspan.core.errors import Denied, Invalid, NotFound
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.vault import Vault

VOTER = Voter("192.0.2.1")


def service(state_dir: Path) -> EtcdService:
    """Return the etcd of a voter without systemd."""
    return EtcdService(state_dir, "h1", VOTER)


async def _no_wish(_vault: Vault) -> None:
    pass


def test_a_half_join_does_not_poison_an_init(tmp_path: Path) -> None:
    """Another cluster's certificate is replaced; but not beside data of this cluster, whose hosts trust it."""
    files, own = TrustFiles(tmp_path), service(tmp_path)
    others = certificates.new_authority(certificates.new_key(), "others", foundation._now())
    files.put(files.authority, others)
    foundation.make_authorities(files, own)
    made = files.authority.read_bytes()
    assert certificates.belongs(made, files.authority_key.read_bytes())
    foundation.make_authorities(files, own)
    assert files.authority.read_bytes() == made
    (own.folder / "data").mkdir(parents=True)
    files.put(files.authority, others)
    with pytest.raises(Invalid, match="do not belong to each other"):
        foundation.make_authorities(files, own)
    own.close()


def test_a_host_without_etcd_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may still join."""
    monkeypatch.setattr("linkspan.cluster.founding.etcd_service.shutil.which", lambda _: None)
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    files = TrustFiles(tmp_path)
    with pytest.raises(NotFound, match="etcd is not installed"):
        asyncio.run(found(files, service(tmp_path), VOTER, "h1", "h1", lambda: None, _no_wish, 3600))
    assert files.voter() is None


@pytest.mark.root
@pytest.mark.parametrize(("uid", "mode", "why"), [(528287, 0o755, "owned by user 528287"), (0, 0o777, "by everybody")])
@pytest.mark.parametrize("at", ["bin/etcd", "bin"])
def test_an_etcd_that_others_may_write_makes_no_voter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, uid: int, mode: int, why: str
) -> None:
    """Neither by init nor later: whoever may write it, or a folder on its path, would become root."""
    etcd, changed, files = tmp_path / "bin" / "etcd", tmp_path / at, TrustFiles(tmp_path / "state")
    etcd.parent.mkdir(mode=0o755)
    etcd.write_text("#!/bin/sh\necho etcd Version: 3.5.16\n")
    etcd.chmod(0o755)
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    assert promotion._ready() == Ready("3.5")
    os.chown(changed, uid, 0)
    changed.chmod(mode)
    with pytest.raises(Denied, match=f"others than root may change etcd.*{changed} .*{why}"):
        asyncio.run(found(files, service(tmp_path), VOTER, "h1", "h1", lambda: None, _no_wish, 3600))
    assert files.voter() is None
    assert why in promotion._ready().problem


def test_a_repeated_init_keeps_the_list_of_revoked_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the voter was lost, and is made again; the list stays, and the vault's is written into it."""
    monkeypatch.setattr("linkspan.store.vault.EtcdStore", lambda _url: MemoryStore(Memory()))
    files, own = TrustFiles(tmp_path), service(tmp_path)
    foundation.make_authorities(files, own)
    foundation.make_server(files, own, VOTER, 3600)

    async def revoke() -> None:
        vault = Vault("", "/linkspan/")
        await vault.put({REVOKED + "2a": (Revoked("h2", time.time()), 0)})
        await renew_revoked(files, vault, own)
        await vault.close()

    asyncio.run(revoke())
    (own.folder / "peer.pem").unlink()
    foundation.make_server(files, own, VOTER, 3600)
    assert (own.folder / "peer.pem").exists()
    listed = x509.load_der_x509_crl((own.folder / "revoked.der").read_bytes())
    assert [one.serial_number for one in cast("list[x509.RevokedCertificate]", [*listed])] == [0x2A]
    own.close()


def test_a_voter_makes_certificates_again_that_are_lost_damaged_or_from_a_wrong_clock(tmp_path: Path) -> None:
    """At its agent's start, before etcd: otherwise that one answers nobody, and no host could help."""
    files, own = TrustFiles(tmp_path), service(tmp_path)
    foundation.make_authorities(files, own)
    foundation.make_server(files, own, VOTER, 3600)
    foundation.make_own(files, "h1", 3600)
    renewal = Renewal(files, "h1", tuple, lambda: None, 3600)
    good = [own.read(f"{name}.pem") for name in ("server", "peer")]
    renewal.sign_due(VOTER, own)
    assert [own.read(f"{name}.pem") for name in ("server", "peer")] == good
    (own.folder / "server.pem").unlink()
    own.put("peer.pem", b"damaged")
    ahead = foundation._now() + datetime.timedelta(hours=12)
    authority = foundation.authority(files, 3600)
    wanted = certificates.Requested(certificates.request(files.key.read_bytes()))
    files.put(files.certificate, authority.host(wanted, "h1", ahead)[0])
    renewal.sign_due(VOTER, own)
    now = time.time()
    for made in (own.read("server.pem"), own.read("peer.pem"), files.certificate.read_bytes()):
        assert parsed(made).begin < now < parsed(made).due
    own.close()
