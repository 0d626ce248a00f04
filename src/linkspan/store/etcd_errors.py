"""Errors of etcd's gateway: each exception and refusal, with its cause and what to do about it."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl

import aiohttp

from linkspan.core.errors import Full, LinkspanError, Rejected, Unavailable
from linkspan.core.store_url import HOST_USER, EtcdUrl
from linkspan.store.etcd_status import STEPS
from linkspan.store.etcd_wire import refusal_of

LOOK = 1.0
"""Seconds for finding out why an endpoint does not answer."""

# google.golang.org/grpc/codes
UNAUTHENTICATED, _OUT_OF_RANGE = 16, 11
_INVALID, _NOT_FOUND, _EXHAUSTED, _DENIED, NOT_ENABLED = 3, 5, 8, 7, 9
_SAME_EVERYWHERE = {_INVALID, _NOT_FOUND, _EXHAUSTED, _DENIED, NOT_ENABLED, _OUT_OF_RANGE}

_LOOKS = "`etcdctl endpoint status` shows more"
_NO_QUORUM = (
    "are more than half of the voters up, and do TCP 5379 and 5380 pass? If most are lost for good, on one that is "
    "left: linkspan cluster recover (docs/recovery.md)"
)
_FOUND_AGAIN = (
    "is the voter up, does its agent run, and does TCP 5379 pass to it? If the voters have other addresses now, they "
    "call this host at UDP 5381; if that cannot pass, on a voter: linkspan cluster token create, and here: linkspan "
    "cluster join TOKEN (it keeps what it has). If the voters are lost for good: docs/recovery.md"
)
_WRONG = "wrong password in"
_NO_TLS = "take ca, cert and key out of the store's URL"


class Refused(Rejected):
    """Etcd answered, and the answer was no; ``number`` is gRPC's code."""

    def __init__(self, message: str, hint: str, number: int) -> None:
        super().__init__(message, hint)
        self.number = number

    @property
    def compacted(self) -> bool:
        """True if etcd has compacted the requested revision."""
        return self.number == _OUT_OF_RANGE

    @property
    def wrong_password(self) -> bool:
        """True if etcd does not let the user in with this password."""
        return _WRONG in self.message

    @property
    def missing(self) -> bool:
        """True if the object of the call does not exist, such as an etcd lease that has ended."""
        return self.number == _NOT_FOUND


class Failed(Unavailable):
    """One endpoint did not answer.

    ``sent``: etcd may have carried out the request all the same. ``dropped``: the endpoint closed the connection.
    ``unanswered``: nothing came, perhaps not even an address for the endpoint's name.
    """

    def __init__(
        self, message: str, hint: str, sent: bool, dropped: bool = False, unanswered: bool = False
    ) -> None:
        super().__init__(message, hint)
        self.sent = sent
        self.dropped = dropped
        self.unanswered = unanswered

    @property
    def silent(self) -> bool:
        """Return whether the connection was made, as far as anybody knows, and no answer came in time."""
        return self.sent and self.unanswered


def failure(url: EtcdUrl, endpoint: str, error: Exception, seconds: float) -> Failed:
    """Return the linkspan error for the exception of a call that had ``seconds``."""
    where, own = f"etcd {endpoint}", url.own
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
        hint = "is it the right etcd, and is ca the authority that signed its certificate?"
        return Failed(f"{where}: its certificate is refused: {why}", hint, False)
    if tls := next((each for each in _causes(error) if isinstance(each, ssl.SSLError)), None):
        return Failed(*_tls_words(where, tls), False)
    if isinstance(error, TimeoutError):
        hint = _NO_QUORUM if own else "does it hang, has it lost its quorum, or is a firewall between? " + _LOOKS
        return Failed(f"{where}: no answer within {seconds:.0f} s", hint, True, unanswered=True)
    hint = _FOUND_AGAIN if own else f"is etcd running there? curl {url.base(endpoint)}/health"
    if isinstance(error, aiohttp.ClientConnectorError):
        if error.os_error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH) and not own:
            hint = "look at this host's links and routes: ip link; ip route"
        if url.tls and not error.os_error.errno:
            return Failed(f"{where}: it does not speak TLS: it hung up", _NO_TLS, False)
        return Failed(f"{where}: cannot be reached: {_why(error.os_error)}", hint, False, unanswered=True)
    dropped = isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError)
    return Failed(f"{where}: the connection broke: {_why(error)}", hint, True, dropped)


def refusal(url: EtcdUrl, endpoint: str, status: int, answer: bytes) -> LinkspanError:
    """Return the linkspan error for an answer with this HTTP status."""
    where = f"etcd {endpoint}"
    try:
        told = refusal_of(answer)
    except Unavailable:
        text = answer.decode(errors="replace").strip()[:200]
        hint = "ca=FILE is missing" if "HTTPS" in text else "is that etcd v3?"
        return Failed(f"{where}: answered {status}: {text}", hint, False)
    why = told.message.removeprefix("etcdserver: ")
    if told.code == _EXHAUSTED and "space exceeded" in why:
        hint = f"`linkspan doctor` says what fills it; {STEPS}"
        what = "its quota is full, so it takes no writes (database space exceeded)"  # the latter is etcd's own
        return Full(f"store {where}: {what}", hint)
    if told.code not in _SAME_EVERYWHERE | {UNAUTHENTICATED}:
        return Failed(f"{where}: {why}", "`etcdctl endpoint status` and its log show more", True)
    return Refused(f"store {where}: {_words(url, why, told.code)}", _hint(url, why, told.code), told.code)


def _words(url: EtcdUrl, why: str, code: int) -> str:
    if "invalid user ID or password" in why:
        return f"user {url.user} is refused: wrong name, or {_WRONG} {url.password_file}"
    if "user name is empty" in why or (code == UNAUTHENTICATED and not url.user):
        return "it lets only users in that it knows, and the store's URL names none"
    if code == _DENIED:
        return f"user {url.user} may not use {url.prefix}: {why}"
    return why


def _hint(url: EtcdUrl, why: str, code: int) -> str:
    if code == _DENIED and url.user.startswith(HOST_USER):
        return "run the command on the host that it is about, or on a voter (`linkspan cluster members`)"
    if code == _DENIED:
        return f"etcdctl role grant-permission ROLE readwrite {url.prefix} --prefix"
    if not url.user and ("user name is empty" in why or code == UNAUTHENTICATED):
        return "add user=NAME&password-file=FILE to the store's URL"
    if "user" in why or code == UNAUTHENTICATED:
        return "check user and password-file in the store's URL"
    return "`etcdctl endpoint status` and its log show more"


async def explained(url: EtcdUrl, endpoint: str, error: Failed) -> Failed:
    """Return the failure, or a better one if the name or TLS explains it: the call's own error does not."""
    host, _, port = endpoint.rpartition(":")
    if error.unanswered and (why := await _unresolved(host.strip("[]"))):
        hint = "correct the name in the store's URL, or look at /etc/hosts and /etc/resolv.conf"
        return Failed(f"etcd {endpoint}: {why}", hint, sent=False)
    if error.dropped and not url.tls and await _speaks_tls(host.strip("[]"), int(port)):
        what = "it speaks TLS, and the store's URL names no authority for its certificate"
        hint = "add ca=FILE (and cert and key, or user) to the store's URL"
        return Failed(f"etcd {endpoint}: {what}", hint, sent=False)
    return error


async def _unresolved(host: str) -> str:
    """Return why a name has no address; '' if it has one, or is an address itself."""
    try:
        async with asyncio.timeout(LOOK):
            await asyncio.get_running_loop().getaddrinfo(host, None)
    except TimeoutError:
        return f"no resolver says which address {host} has"
    except OSError:  # socket.gaierror
        return f"the name {host} is not known"
    return ""


async def _speaks_tls(host: str, port: int) -> bool:
    """Return whether a server completes a TLS handshake, whoever it is; nothing is sent to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(LOOK):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (TimeoutError, OSError) as error:
        # A server that asks for our certificate first speaks TLS, too.
        return isinstance(error, ssl.SSLError) and "CERTIFICATE" in (error.reason or "")
    writer.close()
    return True


def _causes(error: BaseException | None) -> list[BaseException]:
    """Return the error, followed by its causes."""
    chain: list[BaseException] = []
    while error and error not in chain:
        chain.append(error)
        error = getattr(error, "os_error", None) or error.__cause__ or error.__context__
    return chain


def _tls_words(where: str, error: ssl.SSLError) -> tuple[str, str]:
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if "certificate" in reason or "unknown ca" in reason:
        return f"{where}: it refuses our certificate: {reason}", "check cert and key in the store's URL"
    if "wrong version" in reason or "record layer" in reason:
        return f"{where}: it does not speak TLS", _NO_TLS
    return f"{where}: TLS fails: {reason}", "openssl s_client shows more"


def _why(error: Exception) -> str:
    """Return the operating system's text for an error, without what the HTTP library adds."""
    number = getattr(error, "errno", None)
    return (os.strerror(number) if number and number > 0 else str(error) or type(error).__name__).lower()
