"""Foundation: what `cluster init` makes on the first host, in steps that a repeated init finds done."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import Awaitable, Callable, Collection

from linkspan.cluster.founding import certificates, join_token
from linkspan.cluster.founding.certificates import Authority, Requested
from linkspan.cluster.founding.etcd_service import FILES, EtcdService, require_trusted
from linkspan.cluster.founding.join_token import JoinToken, TokenRecord
from linkspan.cluster.founding.signer import HOSTS, REVOKED, TOKENS, JoinedHost, Revoked, sign, with_serials
from linkspan.cluster.founding.trust_files import RECORDS_PREFIX, TrustFiles, Voter
from linkspan.core.errors import Invalid, LinkspanError, Unavailable
from linkspan.kernel.io.private_files import alone
from linkspan.store.vault import TRIES, Vault, contended

PATIENCE = 60.0
"""Seconds for etcd's first answer: a busy machine with a slow disk takes long."""
AGAIN = 0.05
"""Seconds between two tries to reach it."""


async def found(
    files: TrustFiles,
    service: EtcdService,
    voter: Voter,
    host: str,
    name: str,
    install: Callable[[], None],
    wish: Callable[[Vault], Awaitable[None]],
    life: float,
) -> tuple[str, JoinToken]:
    """Make a cluster whose first voter is this host; return the store's URL and a token for the other hosts.

    ``install`` makes the unit and its user if systemd runs etcd; ``wish`` writes down the operator's settings;
    certificates are valid for ``life`` seconds. Each step is repeatable: what exists stays. Raises LinkspanError.
    """
    require_trusted()  # before anything is written: a host that cannot be a voter may still join another's cluster
    files.keep_voter(voter)
    await asyncio.to_thread(make_authorities, files, service)
    await asyncio.to_thread(install)
    await asyncio.to_thread(make_server, files, service, voter, life)
    serial = await asyncio.to_thread(make_own, files, host, life)
    root, own = files.secret(files.root_password), files.secret(files.password)
    await asyncio.to_thread(service.prepare)
    await service.start()
    vault = Vault(files.root_url([voter.clients]), RECORDS_PREFIX)
    try:
        await answers(vault, service)
        await vault.enable(root)
        await renew_revoked(files, vault, service)
        await vault.admit(host, own, voter=True)
        await wish(vault)
        await _note_own(files, vault, host, name, serial)
        token = await create_token(vault, files.authority.read_bytes(), [voter.signer], uses=0, member=True)
    finally:
        await vault.close()
    return files.url([voter.clients], host), token


async def create_token(
    vault: Vault,
    authority: bytes,
    signers: list[str],
    *,
    seconds: float = join_token.NEW_SECONDS,
    uses: int = 0,
    member: bool = False,
) -> JoinToken:
    """Make a token for joins within ``seconds``, of ``uses`` hosts (0: any number), and write its hash down.

    ``authority`` (PEM) is the one that they are to trust.
    """
    token = join_token.new(certificates.fingerprint(authority), tuple(signers))
    now = time.time()
    record = TokenRecord(
        hash=join_token.hashed(token.secret), created=now, expires=now + seconds, uses=uses, member=member
    )
    if not await vault.put({TOKENS + token.id: (record, 0)}):
        raise contended(f"token {token.id}")
    return token


async def renew_revoked(files: TrustFiles, vault: Vault, service: EtcdService) -> None:
    """Write the list of revoked certificates by what the vault has. etcd reads it at each handshake."""
    serials = [int(serial, 16) for serial in await vault.all(REVOKED, Revoked)]
    der = await asyncio.to_thread(lambda: authority(files).revoked(serials, _now()))
    service.put("revoked.der", der)


def make_authorities(files: TrustFiles, service: EtcdService) -> None:
    """Make the two authorities. A join that broke off may have left another cluster's certificate without a key."""
    for key, file, name in (
        (files.authority_key, files.authority, "linkspan clients"),
        (files.peer_authority_key, files.peer_authority, "linkspan voters"),
    ):
        private = files.once(key, certificates.new_key)
        if file.exists() and certificates.belongs(alone(str(file)), private):
            continue
        if (service.folder / "data").exists():
            why = f"{key} and {file}, an authority of this cluster, are missing or do not belong to each other"
            raise Invalid(why, "restore both from a backup")
        files.put(file, certificates.new_authority(private, name, _now()))


def make_server(files: TrustFiles, service: EtcdService, voter: Voter, life: float) -> None:
    """Write what etcd reads: its certificates for hosts and for other voters, the authorities, the revocation list."""
    clients, peers = authority(files, life), peer_authority(files, life)
    if not (service.folder / "revoked.der").exists():  # `renew_revoked` fills it as soon as etcd answers
        service.put("revoked.der", clients.revoked([], _now()))
    if all((service.folder / name).exists() for name in FILES):
        return
    for name, signer in (("server", clients), ("peer", peers)):
        key = certificates.new_key()
        service.put(f"{name}.key", key)
        service.put(f"{name}.pem", signer.server(key, voter.names, _now()))
    service.put("client-ca.pem", alone(str(files.authority)) + b"\n")
    service.put("peer-ca.pem", alone(str(files.peer_authority)) + b"\n")


def authority(files: TrustFiles, life: float = certificates.LIFE_SECONDS) -> Authority:
    """Return the authority that signs hosts' and servers' certificates, for ``life`` seconds."""
    return Authority(alone(str(files.authority)), alone(str(files.authority_key)), life)


def peer_authority(files: TrustFiles, life: float) -> Authority:
    """Return the authority that signs certificates of voters for each other, for ``life`` seconds."""
    return Authority(alone(str(files.peer_authority)), alone(str(files.peer_authority_key)), life)


def make_own(files: TrustFiles, host: str, life: float) -> int:
    """Make this host's own certificate; return its serial number."""
    wanted = Requested(certificates.request(files.once(files.key, certificates.new_key)))
    certificate, serial = sign(files, wanted, host, life)
    files.put(files.certificate, certificate)
    return serial


def sign_again(
    files: TrustFiles, service: EtcdService, voter: Voter, host: str, names: Collection[str], life: float
) -> None:
    """Sign certificates of a voter again: ``host``, ``server`` or ``peer``. The keys stay. Raises LinkspanError."""
    for name, signer in (("server", authority), ("peer", peer_authority)):
        if name in names:
            key = service.read(f"{name}.key")
            service.put(f"{name}.pem", signer(files, life).server(key, voter.names, _now()))
    if "host" in names:
        make_own(files, host, life)


async def answers(vault: Vault, service: EtcdService) -> None:
    """Wait until etcd answers. Raises Unavailable with its log's place."""
    deadline = time.monotonic() + PATIENCE
    said = ""
    while time.monotonic() < deadline:
        try:
            await vault.ready()
        except Unavailable as error:
            said = error.message
        else:
            return
        with contextlib.suppress(LinkspanError):
            await service.start()
        await asyncio.sleep(AGAIN)
    raise Unavailable(f"etcd does not answer after {PATIENCE:.0f} s: {said}", f"its log is {service.log}")


async def _note_own(files: TrustFiles, vault: Vault, host: str, name: str, serial: int) -> None:
    """Write down the key of this host, so that nobody else joins with its id."""
    key = await asyncio.to_thread(lambda: certificates.key_hash(alone(str(files.key))))
    for _ in range(TRIES):
        known, revision = await vault.get(HOSTS + host, JoinedHost)
        serials = known.serials if known else ()
        joined = JoinedHost(name, key, serials, "", time.time(), member=known is None or known.member)
        if await vault.put({HOSTS + host: (with_serials(joined, f"{serial:x}"), revision)}):
            return
    raise contended(f"host {host}")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
