"""When a certificate is renewed, what the signer gives whom, and what an operator is told."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from linkspan.cluster.founding import certificates, renewal
from linkspan.cluster.founding.certificates import (
    Authority,
    Requested,
    Shown,
    new_authority,
    new_key,
    request,
)
from linkspan.cluster.founding.reissue import RenewalWish, Renewed
from linkspan.cluster.founding.renewal import CLIENTS, HOST, judged, take
from linkspan.cluster.founding.signer import HOSTS, JoinedHost
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.cluster.founding.validity import Validity, parsed
from linkspan.core.errors import Denied, Invalid, Unavailable
from support.memory_vault import Etcd

NOW = datetime.datetime(2026, 11, 30, 12, tzinfo=datetime.UTC)
HOUR, TEN_MINUTES = 3600.0, 600.0


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Etcd:
    """Give an etcd with a signer."""
    return Etcd(monkeypatch, tmp_path)


def der(pem: str) -> bytes:
    """Return a certificate as a TLS handshake shows it."""
    return ssl.PEM_cert_to_DER_cert(pem)


def shown_by(pem: str) -> Shown:
    """Return a certificate as the signer reads it."""
    return Shown(der(pem))


def made(life: float, now: datetime.datetime = NOW) -> Validity:
    """Return the validity of a host's certificate that was just made."""
    key = new_key()
    one = Authority(new_authority(key, "clients", now), key, life)
    return parsed(one.host(Requested(request(new_key())), "h1", now)[0])


def aged(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the signer's clock go on."""

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Later:
            return cls.fromtimestamp(time.time() + seconds, tz)

    monkeypatch.setattr("datetime.datetime", Later)


def test_a_certificates_times_are_read_as_the_library_reads_them() -> None:
    """Also those of an authority, and in a text with more."""
    key = new_key()
    for pem in (new_authority(key, "a", NOW), b"text\n" + new_authority(key, "b", NOW.replace(year=2049)) * 2):
        found, read = x509.load_pem_x509_certificate(pem[pem.index(b"-----") :]), parsed(pem)
        assert read.serial == found.serial_number
        assert read.begin == found.not_valid_before_utc.timestamp()
        assert read.end == found.not_valid_after_utc.timestamp()


def test_what_is_no_certificate_is_refused_and_not_misread() -> None:
    """However it is cut or changed."""
    pem = new_authority(new_key(), "a", NOW)
    body = der(pem.decode())
    for cut in range(0, 120, 7):
        with pytest.raises(Invalid):
            parsed(ssl.DER_cert_to_PEM_cert(body[:cut]).encode())
    for text in (b"", b"x", pem[:100], b"-----END CERTIFICATE-----", pem.replace(b"BEGIN", b"BEGUN")):
        with pytest.raises(Invalid):
            parsed(text)


def test_certificates_are_renewed_between_half_and_four_fifths_of_their_lives() -> None:
    """Each at a time of its own, which stays the same; hosts that joined at once do not come at once."""
    parts = []
    for _ in range(200):
        one = made(1000)
        assert one.made == NOW.timestamp()
        assert one.end == NOW.timestamp() + 1000
        parts.append((one.due - one.made) / 1000)
        assert one.due == Validity(one.serial, one.begin, one.end).due
    assert 0.5 <= min(parts) < 0.53
    assert 0.77 < max(parts) <= 0.8
    assert 0.63 < sum(parts) / len(parts) < 0.67


def test_nothing_outlives_its_authority() -> None:
    """Else a chain would be refused that looks good."""
    key = new_key()
    authority = new_authority(key, "clients", NOW)
    late = NOW + datetime.timedelta(days=3640)
    made, _ = Authority(authority, key).host(Requested(request(new_key())), "h1", late)
    assert parsed(made).end == parsed(authority).end


def test_a_host_gets_the_same_certificate_until_half_of_its_life_is_over(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot fill the vault by asking, and a lost answer costs nothing. All serials are noted."""

    async def run() -> None:
        await etcd.token("a1")
        key = new_key()
        first = (await etcd.join("h2", "a1", key)).certificate
        assert (await etcd.reissue.renew(shown_by(first), RenewalWish())).certificate == first
        aged(monkeypatch, 0.55 * HOUR)
        second = (await etcd.reissue.renew(shown_by(first), RenewalWish())).certificate
        assert second != first
        assert certificates.belongs(second.encode(), key)
        for shown in (first, second, first):
            assert (await etcd.reissue.renew(shown_by(shown), RenewalWish())).certificate == second
        known, _ = await etcd.vault.get(HOSTS + "h2", JoinedHost)
        assert known is not None
        assert known.serials == tuple(f"{parsed(one.encode()).serial:x}" for one in (first, second))
        names = x509.load_pem_x509_certificate(second.encode()).extensions
        assert names.get_extension_for_class(x509.SubjectAlternativeName).value == x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier("linkspan://host/h2")]
        )

    asyncio.run(run())


def test_a_forgotten_host_renews_nothing_and_both_its_certificates_are_revoked(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that it joined with, and the one that followed."""

    async def run() -> None:
        await etcd.token("a1")
        first = (await etcd.join("h2", "a1", new_key())).certificate
        aged(monkeypatch, 0.6 * HOUR)
        second = (await etcd.reissue.renew(shown_by(first), RenewalWish())).certificate
        await etcd.forget("h2", known=True)
        for shown in (first, second):
            with pytest.raises(Denied, match="is not in the cluster any more"):
                await etcd.reissue.renew(shown_by(shown), RenewalWish())
        revoked = await etcd.vault.all("revoked/", dict)
        assert set(revoked) == {f"{parsed(one.encode()).serial:x}" for one in (first, second)}
        await etcd.token("b2")
        await etcd.join("h2", "b2", new_key())
        for shown in (first, second):  # the id is back, with another key
            with pytest.raises(Denied, match="is not in force any more"):
                await etcd.reissue.renew(shown_by(shown), RenewalWish())

    asyncio.run(run())


def test_a_certificate_that_is_younger_than_a_restored_vault_stays_good(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vault takes up its serial number, so it is revoked with the host."""

    async def run() -> None:
        await etcd.token("a1")
        first = (await etcd.join("h2", "a1", new_key())).certificate
        snapshot, _ = await etcd.vault.get(HOSTS + "h2", JoinedHost)
        aged(monkeypatch, 0.6 * HOUR)
        second = (await etcd.reissue.renew(shown_by(first), RenewalWish())).certificate
        _, revision = await etcd.vault.get(HOSTS + "h2", JoinedHost)
        await etcd.vault.put({HOSTS + "h2": (snapshot, revision)})
        await etcd.reissue.renew(shown_by(second), RenewalWish())
        await etcd.forget("h2", known=True)
        revoked = await etcd.vault.all("revoked/", dict)
        assert revoked.keys() == {f"{parsed(one.encode()).serial:x}" for one in (first, second)}

    asyncio.run(run())


def test_only_a_hosts_certificate_of_this_cluster_is_renewed(etcd: Etcd) -> None:
    """Not that of a server, not of an id that nobody has, and not one of another key."""
    authority = Authority(etcd.files.authority.read_bytes(), etcd.files.authority_key.read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    server = authority.server(new_key(), ["192.0.2.1"], now)
    unknown, _ = authority.host(Requested(request(new_key())), "h9", now)
    stolen, _ = authority.host(Requested(request(new_key())), "h2", now)

    async def run() -> None:
        await etcd.token("a1")
        await etcd.join("h2", "a1", new_key())
        for shown, why in ((server, "is no host's"), (unknown, "not in the cluster"), (stolen, "not in force")):
            with pytest.raises(Denied, match=why):
                await etcd.reissue.renew(shown_by(shown.decode()), RenewalWish())
        with pytest.raises(Denied, match="cannot be read"):
            await etcd.reissue.renew(Shown(b"none"), RenewalWish())

    asyncio.run(run())


def test_a_certificate_of_another_kind_of_key_is_no_hosts() -> None:
    """It may have come from another program."""
    name = x509.Name([])
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW).not_valid_after(NOW)
    from cryptography.hazmat.primitives.hashes import SHA256

    with pytest.raises(Denied, match="cannot be read"):
        Shown(builder.sign(key, SHA256()).public_bytes(Encoding.DER))


def test_an_answer_that_would_cut_the_host_off_is_not_taken(tmp_path: Path) -> None:
    """Another key's certificate, or no authority: the files stay as they are."""
    files, key = TrustFiles(tmp_path), new_key()
    ca = new_key()
    authority = new_authority(ca, "clients", NOW)
    signed = [Authority(authority, ca).host(Requested(request(one)), "h1", NOW)[0] for one in (key, key, new_key())]
    own, next_, others = (one.decode() for one in signed)
    files.put(files.key, key)
    files.put(files.authority, authority)
    files.put(files.certificate, own.encode())
    for given in (Renewed(others, authority.decode()), Renewed("none", authority.decode()), Renewed(next_, "")):
        with pytest.raises(Invalid):
            take(files, given)
        assert files.certificate.read_text() == own
    ahead = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=12)
    early, _ = Authority(authority, ca).host(Requested(request(key)), "h1", ahead)
    with pytest.raises(Invalid, match="is valid from") as refused:
        take(files, Renewed(early.decode(), authority.decode()))
    assert "compare the clocks" in refused.value.hint
    assert files.certificate.read_text() == own
    take(files, Renewed(next_, authority.decode()))
    assert files.certificate.read_text() == next_
    assert sorted(one.name for one in files.folder.iterdir()) == ["client-ca.pem", "host.key", "host.pem"]


def test_a_certificate_from_a_wrong_clock_is_replaced_once_that_is_right(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vault has it as the host's last one, and every voter would refuse it until it begins."""

    async def run() -> None:
        await etcd.token("a1")
        first = (await etcd.join("h2", "a1", new_key())).certificate
        with monkeypatch.context() as wrong:
            aged(wrong, 12 * HOUR)
            early = (await etcd.reissue.renew(shown_by(first), RenewalWish())).certificate
        assert parsed(early.encode()).begin > time.time()
        good = (await etcd.reissue.renew(shown_by(first), RenewalWish())).certificate
        assert good not in (first, early)
        assert parsed(good.encode()).begin < time.time()

    asyncio.run(run())


@pytest.mark.parametrize("apart", [-TEN_MINUTES, TEN_MINUTES])
def test_clocks_may_be_ten_minutes_apart(apart: float) -> None:
    """A certificate that the signer just made is good on the host, and its time to be renewed has not come."""
    one = made(HOUR)
    there = NOW.timestamp() + apart
    assert judged(HOST, one, there, None, voter=False).problem == ""
    assert one.due > there


def test_an_operator_is_told_before_a_certificate_expires_and_what_to_do_after() -> None:
    """With the day, the cause and the fix; nothing while it can still be renewed."""
    one = made(100 * 86400.0)
    why = Unavailable("signer 192.0.2.1:5381 cannot be reached: no route", "is its agent running?")

    def told(part: float, name: str = HOST, *, voter: bool = False) -> tuple[str, str]:
        held = judged(name, one, one.at(part), why, voter=voter)
        assert held.expires == one.end
        return held.problem, held.fix

    assert told(0.85) == ("", "")
    problem, fix = told(0.95)
    assert "expires on 2027-03-10 12:00 UTC, and could not be renewed: signer 192.0.2.1:5381" in problem
    assert fix == "is its agent running?"
    assert "linkspan cluster join TOKEN" in told(1.0)[1]
    assert "restart it" in told(1.0, voter=True)[1]
    assert "rotate-ca" in told(0.95, CLIENTS)[1]
    assert "nothing that it signed" in told(0.95, CLIENTS)[0]
    denied = judged(HOST, one, one.at(0.1), Denied("it refuses this host's certificate", "join again"), voter=False)
    assert (denied.problem, denied.fix) == ("it refuses this host's certificate", "join again")
    early = judged(HOST, one, one.begin - 1, None, voter=False)
    assert "this host's clock" in early.problem
    assert "set this host's clock" in early.fix


def test_after_failures_the_pauses_grow_and_differ() -> None:
    """From seconds to half an hour."""
    assert {1.0 <= renewal.pause(1) <= 2.0 for _ in range(50)} == {True}
    assert {900.0 <= renewal.pause(99) <= 1800.0 for _ in range(50)} == {True}
    assert len({renewal.pause(5) for _ in range(20)}) > 10
