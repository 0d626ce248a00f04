"""Renewal of a host's certificates: when, by whom, and what an operator must know of them.

A certificate is renewed at a random part of its life between 50 and 80 % (``validity``). A client asks a signer, and
proves itself by the certificate that it has. A voter signs by itself with the authorities' keys, also before etcd
answers: one that was off for longer than its certificates were good makes new ones at its start.

Each certificate is one file, which is changed in one step; the key beside it stays. etcd reads its files at each
handshake. The agent's open connections to etcd stay, and new ones use the new certificate, so no watch is lost.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from linkspan.cluster.founding import handover, member_list
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.reissue import RENEW, RenewalWish, Renewed
from linkspan.cluster.founding.signer import HOSTS, JoinedHost, with_serials
from linkspan.cluster.founding.signer_client import JOIN_AGAIN
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.cluster.founding.validity import LATE, Validity, fingerprints, parsed
from linkspan.core.errors import Denied, Invalid, LinkspanError, Unavailable
from linkspan.core.supervise import ended, lasting, woken
from linkspan.kernel.io.private_files import alone
from linkspan.store.vault import TRIES, Vault, contended

log = logging.getLogger("linkspan.cluster.founding.renewal")

LONGEST_WAIT = 600.0
"""Seconds between two looks at the times: somebody may set the clock."""
ROUNDS = 3
"""How often a host asks in a row: again after each change, to show what it has now."""
SPREAD_SECONDS = 2.0
"""Seconds over which hosts spread that are told to look at once."""
TOLD_MOST, TOLD_SECONDS = 20, 600.0
"""How often in so many seconds a host looks because it is told to: any host may write the record that tells it."""
RETRY_SECONDS = (2.0, 1800.0)
"""The first and the longest pause after a failure, each twice as long as the one before."""
HOST, SERVER, PEER = "host", "server", "peer"
"""The names of the certificates: of this host, and on a voter of etcd for hosts and for other voters."""
CLIENTS, PEERS = "client authority", "peer authority"
ROTATE = "on a voter: linkspan cluster rotate-ca"
RESTART = "the agent makes a new one at its start: restart it, and look into its log if it does not"


class HeldCertificate(msgspec.Struct, frozen=True):
    """A certificate that this host has: its name, when it expires, and what is wrong with it ('': nothing)."""

    name: str
    expires: float
    problem: str = ""
    fix: str = ""


def judged(name: str, validity: Validity, now: float, failure: LinkspanError | None, *, voter: bool) -> HeldCertificate:
    """Return a certificate with what is wrong with it; ``failure`` is why the last renewal failed. Pure."""
    day, authority = _day(validity.end), name in (CLIENTS, PEERS)
    problem = fix = ""
    if now < validity.begin:
        problem = f"it is valid from {_day(validity.begin)} on, and this host's clock shows {_day(now)}"
        fix = "set this host's clock, or that of the voter that signed it"
    elif now >= validity.end:
        problem = f"it expired on {day}, and is refused everywhere"
        fix = ROTATE if authority else RESTART if voter else JOIN_AGAIN
    elif name == HOST and isinstance(failure, Denied):
        problem, fix = failure.message, failure.hint
    elif now >= validity.at(LATE) and authority:
        problem, fix = f"it expires on {day}: then nothing that it signed is good any more", ROTATE
    elif now >= validity.at(LATE):
        why = failure.message if failure is not None else "the agent has not tried yet"
        problem = f"it expires on {day}, and could not be renewed: {why}"
        fix = (failure.hint if failure is not None else "") or "the agent's log has the reason"
    return HeldCertificate(name, validity.end, problem, fix)


def _day(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def pause(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row: hosts should not all come back at once."""
    first, longest = RETRY_SECONDS
    most = min(first * 2.0 ** min(failures - 1, 20), longest)
    return most * random.uniform(0.5, 1)  # noqa: S311 - it spreads, and hides nothing


def rest(looked: Sequence[float], now: float) -> float:
    """Return for how many seconds a host that is told to look waits, by its last TOLD_MOST times. Pure."""
    return max(looked[0] + TOLD_SECONDS - now, 0) if len(looked) == TOLD_MOST else 0


async def ask(files: TrustFiles, signers: Sequence[str]) -> Renewed:
    """Return what a signer gives this host, which shows its certificate. Raises Denied, Conflict or Unavailable."""
    wish = RenewalWish(fingerprints(alone(str(files.authority))))
    return await handover.ask(files, signers, RENEW, wish, Renewed)


def take(files: TrustFiles, given: Renewed) -> bool:
    """Keep what a signer gave; return whether it is anything new.

    Raises Invalid, and changes nothing, if this host could not connect with it.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=given.authorities)
        files.put(files.coming, given.certificate.encode())
        context.load_cert_chain(files.coming, files.key)
        begin = parsed(given.certificate.encode()).begin
    except (ssl.SSLError, ValueError) as error:
        raise Invalid("the signer gave a certificate that is not for this host's key, or none") from error
    finally:
        files.coming.unlink(missing_ok=True)
    if begin > (now := time.time()):  # every voter with the right time would refuse it, and nobody give another one
        what = f"the signer gave a certificate that is valid from {_day(begin)} on, and this host's clock shows"
        raise Invalid(f"{what} {_day(now)}", "compare the clocks of this host and of the voter")
    changed = False
    for file, text in ((files.authority, given.authorities), (files.certificate, given.certificate)):
        if file.read_bytes().strip() != text.encode().strip():
            files.put(file, text.encode())
            changed = True
    return changed


class VoterPart(Protocol):
    """The voter's side of a renewal: its part, its etcd, and the vault."""

    voter: Voter
    service: EtcdService
    vault: Vault


class Renewal:
    """The certificates of one host, and those of its etcd while it is a voter."""

    def __init__(
        self,
        files: TrustFiles,
        host: str,
        places: Callable[[], Sequence[str]],
        part: Callable[[], VoterPart | None],
        life: float,
    ) -> None:
        """``places`` returns HOST:PORT of etcd on the voters, and ``part`` what this host has if it is one.

        A voter signs for ``life`` seconds.
        """
        self._files = files
        self._host = host
        self._places = places
        self._part = part
        self._life = life
        self._failure: LinkspanError | None = None
        self._asks = True
        """Whether a signer must be asked whatever the times are: at the start, and while authorities change."""
        self._told = asyncio.Event()
        self._looked: deque[float] = deque(maxlen=TOLD_MOST)
        """When it looked because it was told to (monotonic clock), the last times."""
        self._noted: frozenset[int] = frozenset()
        """The serial numbers of this voter's certificates that are in the vault."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to renew."""
        self._task = lasting("renewing certificates", self._run)

    def soon(self) -> None:
        """Look again now: the authorities may have changed, this host has become a voter, or the vault is another."""
        self._asks = True
        self._noted = frozenset()
        self._told.set()

    async def stop(self) -> None:
        """End."""
        await ended(self._task)

    def held(self) -> list[HeldCertificate]:
        """Return this host's certificates, with what is wrong with them."""
        now, part = time.time(), self._part()
        service, voter = (None, False) if part is None else (part.service, True)
        found = []
        for name in (*_names(service), CLIENTS, *([PEERS] if voter else [])):
            try:
                found.append(judged(name, self._validity(name, service), now, self._failure, voter=voter))
            except LinkspanError as error:
                fix = RESTART if voter else JOIN_AGAIN
                found.append(HeldCertificate(name, 0, f"it cannot be used: {error.message}", fix))
        return found

    def _validity(self, name: str, service: EtcdService | None) -> Validity:
        """Return the validity of a certificate. Raises LinkspanError with its file."""
        if name in (SERVER, PEER) and service is not None:
            return parsed(service.read(f"{name}.pem"))
        files = {HOST: self._files.certificate, CLIENTS: self._files.authority, PEERS: self._files.peer_authority}
        return parsed(alone(str(files[name])))

    def _due(self, service: EtcdService | None) -> set[str]:
        """Return the names of the certificates whose time has come. Raises LinkspanError."""
        now, due = time.time(), set()
        for name in _names(service):
            try:
                one = self._validity(name, service)
            except LinkspanError:
                if service is None:
                    raise  # a client proves itself by it; a voter signs another one
                due.add(name)
            else:
                if one.due <= now or one.begin > now:  # whoever signed it had a wrong clock
                    due.add(name)
        return due

    async def _run(self) -> None:
        failures = 0
        while True:
            self._told.clear()
            try:
                await self._look()
            except LinkspanError as error:
                failures += 1
                if self._failure is None or self._failure.message != error.message:
                    log.info("certificates: %s", error.told)
                self._failure = error
                wait = pause(failures)
            else:
                failures, self._failure = 0, None
                wait = self._until_due()
            if await woken(self._told, wait):
                spread = random.uniform(0, SPREAD_SECONDS)  # noqa: S311 - it spreads, and hides nothing
                await asyncio.sleep(max(spread, rest(self._looked, time.monotonic())))
                self._looked.append(time.monotonic())

    def _until_due(self) -> float:
        """Return in how many seconds to look again."""
        service = None if (part := self._part()) is None else part.service
        first = min(self._validity(name, service).due for name in _names(service))
        return min(max(first - time.time(), 0.1), LONGEST_WAIT)

    async def _look(self) -> None:
        """Renew what is due. Raises LinkspanError."""
        if (part := self._part()) is not None:
            await asyncio.to_thread(self.sign_due, part.voter, part.service)
            await self._note(part)
        elif self._asks or self._due(None):
            self._asks = False  # `soon` may set it again meanwhile
            try:
                await self._ask()
            except LinkspanError:
                self._asks = True
                raise

    async def _ask(self) -> None:
        """Take what a signer has for this host. Raises LinkspanError."""
        for _ in range(ROUNDS):
            if not take(self._files, await ask(self._files, member_list.signers(self._places()))):
                break
            log.info("this host has another certificate, or other authorities")
        if self._due(None):
            why = "the signer takes the certificate for younger than this host does"
            raise Unavailable(why, "compare the clocks of this host and of the voter")

    def sign_due(self, voter: Voter, service: EtcdService) -> None:
        """Sign what is due, on a voter: by its own keys, and without etcd. Raises LinkspanError."""
        if not (due := self._due(service)):
            return
        from linkspan.cluster.founding import foundation  # cryptography: 10 MB that only signing needs

        foundation.sign_again(self._files, service, voter, self._host, due, self._life)
        log.info("certificates are renewed: %s", ", ".join(sorted(due)))

    async def _note(self, part: VoterPart) -> None:
        """Write down the serial numbers of this voter's certificates: if it is forgotten, they are revoked."""
        serials = frozenset(self._validity(name, part.service).serial for name in _names(part.service))
        if serials == self._noted:
            return
        for _ in range(TRIES):
            known, revision = await part.vault.get(HOSTS + self._host, JoinedHost)
            if known is None or (fresh := with_serials(known, *(f"{one:x}" for one in sorted(serials)))) == known:
                break
            if await part.vault.put({HOSTS + self._host: (fresh, revision)}):
                break
        else:
            raise contended("the serial numbers of this voter's certificates")
        self._noted = serials


def _names(service: EtcdService | None) -> tuple[str, ...]:
    """Return the names of the certificates that are renewed: on a voter those of its etcd as well."""
    return (HOST,) if service is None else (HOST, SERVER, PEER)
