"""Client of etcd's HTTP gateway: logs in, tries one endpoint after the other, and explains each failure.

A call goes to the endpoint that answered last; if that fails, to the next. Each gets SECONDS, so a call takes at most
SECONDS times the number of endpoints. A refusal by etcd itself is not retried at another member.

A stream is one request whose body takes further messages while its answer brings lines. Measured with etcd 3.5, a
message and its answer cost etcd 0.2 ms and the agent 0.1 ms; a separate request costs 0.4 and 0.3 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import TypeVar

import aiohttp
import msgspec

from linkspan.core.errors import Denied, Full, LinkspanError, Rejected, Unavailable
from linkspan.core.store_url import HOST_USER, EtcdUrl
from linkspan.kernel.io.private_files import alone
from linkspan.store.etcd_status import STEPS
from linkspan.store.etcd_wire import Json, Token, decode, refusal_of

SECONDS = 3.0
"""Seconds for one answer of one endpoint: an election takes 1 to 2 s, an answer 1 ms."""

LOOK = 1.0
"""Seconds for finding out why an endpoint does not answer."""

CONNECTIONS = 4
"""Connections to one endpoint at once, besides the streams: 200 simultaneous calls share them.

An idle agent has three in all: the stream of its watch, the one of its lease, and one for calls. A thousand agents have
6,000 at the most.
"""

# google.golang.org/grpc/codes
_UNAUTHENTICATED, _OUT_OF_RANGE = 16, 11
_INVALID, _NOT_FOUND, _EXHAUSTED, _DENIED, _NOT_ENABLED = 3, 5, 8, 7, 9
_SAME_EVERYWHERE = {_INVALID, _NOT_FOUND, _EXHAUSTED, _DENIED, _NOT_ENABLED, _OUT_OF_RANGE}

_NO_TLS = "take ca, cert and key out of the store's URL"

T = TypeVar("T")


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


class Gateway:
    """The endpoints of one etcd cluster."""

    def __init__(self, url: EtcdUrl) -> None:
        self.url = url
        self.endpoint = url.endpoints[0]
        """The endpoint that answered last."""
        self._calls: aiohttp.ClientSession | None = None
        self._lasting: aiohttp.ClientSession | None = None
        """The session for streams."""
        self._context: ssl.SSLContext | None = None
        self._token = ""
        self._logging_in = asyncio.Lock()
        self.streams: set[Stream] = set()
        """The open streams."""
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False

    async def call(self, path: str, body: Json, seconds: float = 0) -> tuple[bytes, bool]:
        """Return the answer, and whether etcd may have carried out an earlier, failed try as well.

        Each endpoint gets ``seconds`` (0: SECONDS). Raises Refused if etcd refuses the call. If no endpoint answers,
        raises Unavailable, with the reason of each.
        """
        failures: dict[str, Failed] = {}
        sent = False
        for endpoint in self.order():
            for _ in range(2):
                try:
                    answer = await self._ask_as_user(endpoint, path, body, seconds)
                except Failed as error:
                    failures[endpoint] = error
                    sent |= error.sent
                    if not error.dropped:
                        break  # only a closed connection deserves another try: it may have been idle for long
                else:
                    self.prefer(endpoint)
                    return answer, sent
        raise await self.unavailable(failures)

    def prefer(self, endpoint: str) -> None:
        """Ask this endpoint first from now on, unless it was taken out meanwhile."""
        if endpoint in self.url.endpoints:
            self.endpoint = endpoint

    def follow(self, endpoints: tuple[str, ...]) -> None:
        """Use these endpoints (HOST:PORT, at least one) from now on; running calls and streams go on."""
        self.url = msgspec.structs.replace(self.url, endpoints=endpoints)
        if self.endpoint not in endpoints:
            self.endpoint = random.choice(endpoints)  # noqa: S311 - it spreads, and hides nothing

    def order(self) -> tuple[str, ...]:
        """Return the endpoints in the order in which they are asked: the one that answered last is the first."""
        first = self.url.endpoints.index(self.endpoint)
        return self.url.endpoints[first:] + self.url.endpoints[:first]

    async def unavailable(self, failures: Mapping[str, Failed]) -> Unavailable:
        """Return the error for a call that no endpoint answered, with the reason of each."""
        self._context = None  # certificates may be renewed meanwhile
        # A token names the revision of raft's log that a member must have reached. One that was restored from a backup
        # has not, and waits for it instead of refusing the token.
        self._token = ""
        told = await asyncio.gather(*(self._explained(endpoint, error) for endpoint, error in failures.items()))
        return Unavailable(f"store {'; '.join(one.message for one in told)}", told[0].hint)

    async def _explained(self, endpoint: str, error: Failed) -> Failed:
        """Return the failure, or a better one if the name or TLS explains it: the call's own error does not."""
        host, _, port = endpoint.rpartition(":")
        if error.unanswered and (why := await _unresolved(host.strip("[]"))):
            hint = "correct the name in the store's URL, or look at /etc/hosts and /etc/resolv.conf"
            return Failed(f"etcd {endpoint}: {why}", hint, sent=False)
        if error.dropped and not self.url.tls and await _speaks_tls(host.strip("[]"), int(port)):
            what = "it speaks TLS, and the store's URL names no authority for its certificate"
            hint = "add ca=FILE (and cert and key, or user) to the store's URL"
            return Failed(f"etcd {endpoint}: {what}", hint, sent=False)
        return error

    async def ask(self, path: str, body: Json, kind: type[T], seconds: float = 0) -> T:
        """Return the answer to a request that may be carried out twice. Raises as ``call`` does."""
        return decode((await self.call(path, body, seconds))[0], kind)

    async def at(self, endpoint: str, path: str, body: Json, seconds: float) -> bytes:
        """Return the answer of this one endpoint, which gets ``seconds`` for it. Raises Unavailable."""
        return await self._ask_as_user(endpoint, path, body, seconds)

    async def _ask_as_user(self, endpoint: str, path: str, body: Json, seconds: float) -> bytes:
        token = await self._login(endpoint, stale="") if self.url.user else ""
        try:
            return await self._ask(endpoint, path, body, token, seconds)
        except Refused as error:
            # A token is valid for some minutes; it ends sooner if its member restarts or users change.
            if not token or not (error.number == _UNAUTHENTICATED or "auth store is old" in error.message):
                raise
        return await self._ask(endpoint, path, body, await self._login(endpoint, stale=token), seconds)

    async def _login(self, endpoint: str, stale: str) -> str:
        """Return a token other than the stale one. Logins take turns, because each costs etcd 70 ms."""
        async with self._logging_in:
            if not self._token or self._token == stale:
                body = {"name": self.url.user, "password": _password(self.url.password_file)}
                try:
                    answer = await self._ask(endpoint, "/v3/auth/authenticate", body, "")
                except Refused as error:
                    if error.number == _NOT_ENABLED:
                        return ""  # this etcd lets everyone in
                    raise
                self._token = decode(answer, Token).token
            return self._token

    async def _ask(self, endpoint: str, path: str, body: Json, token: str, seconds: float = 0) -> bytes:
        self._refuse_closed()
        if self._calls is None:
            self._calls = _session(aiohttp.ClientTimeout(total=SECONDS), CONNECTIONS)
        try:
            async with self._calls.post(
                self.url.base(endpoint) + path,
                data=msgspec.json.encode(body),
                headers={"Authorization": token} if token else {},
                timeout=aiohttp.ClientTimeout(total=seconds or SECONDS),
                ssl=await self._tls(),
            ) as response:
                answer = await response.read()
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise self.failure(endpoint, error, seconds) from error
        if response.status != 200:
            raise self._refusal(endpoint, response.status, answer)
        return answer

    async def stream(self, endpoint: str, path: str, body: Json, seconds: float = 0) -> Stream:
        """Open a stream at one endpoint, and send its first message. The caller closes it.

        Etcd gets ``seconds`` (0: SECONDS) to begin its answer. Raises Unavailable.
        """
        token = await self._login(endpoint, stale="") if self.url.user else ""
        self._refuse_closed()
        if self._lasting is None:
            self._lasting = _session(aiohttp.ClientTimeout(total=None, sock_connect=SECONDS), 0)
        headers = {
            # A member that has lost its leader ends the stream, instead of falling silent.
            "Grpc-Metadata-hasleader": "true",
            # Otherwise Go's server reads the whole body before it begins to answer (net/http, HTTP/1.1).
            "Connection": "close",
            **({"Authorization": token} if token else {}),
        }
        messages = Messages(body)
        try:
            async with asyncio.timeout(seconds or SECONDS):
                response = await self._lasting.post(
                    f"{self.url.base(endpoint)}{path}",
                    data=messages.sent(),
                    headers=headers,
                    ssl=await self._tls(),
                )
        except BaseException as error:
            messages.end()
            if isinstance(error, aiohttp.ClientError | ValueError | OSError):
                raise self.failure(endpoint, error, seconds) from error
            raise
        stream = Stream(self, endpoint, response, messages)
        if response.status != 200:
            with contextlib.closing(stream):
                raise self._refusal(endpoint, response.status, await stream.rest())
        return stream

    def _refuse_closed(self) -> None:
        if self._closed:
            raise Unavailable(f"store etcd {self.endpoint} is closed", "the agent is stopping")

    async def _tls(self) -> ssl.SSLContext | bool:
        """Return the TLS settings of a call; the files are read again after each failure."""
        if not self.url.tls:
            return True
        if self._context is None:
            self._context = await asyncio.to_thread(_context, self.url)
        return self._context

    def failure(self, endpoint: str, error: Exception, seconds: float = 0) -> Failed:
        """Return the linkspan error for the exception of a call that had ``seconds`` (0: SECONDS)."""
        where = f"etcd {endpoint}"
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            why = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
            hint = "is it the right etcd, and is ca the authority that signed its certificate?"
            return Failed(f"{where}: its certificate is refused: {why}", hint, False)
        if tls := next((each for each in _causes(error) if isinstance(each, ssl.SSLError)), None):
            return Failed(*_tls_words(where, tls), False)
        if isinstance(error, TimeoutError):
            hint = "does it hang, has it lost its quorum, or is a firewall between? etcdctl endpoint status"
            return Failed(f"{where}: no answer within {seconds or SECONDS:.0f} s", hint, True, unanswered=True)
        hint = f"is etcd running there? curl {self.url.base(endpoint)}/health"
        if isinstance(error, aiohttp.ClientConnectorError):
            if error.os_error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                hint = "look at this host's links and routes: ip link; ip route"
            if self.url.tls and not error.os_error.errno:
                return Failed(f"{where}: it does not speak TLS: it hung up", _NO_TLS, False)
            return Failed(f"{where}: cannot be reached: {_why(error.os_error)}", hint, False, unanswered=True)
        dropped = isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError)
        return Failed(f"{where}: the connection broke: {_why(error)}", hint, True, dropped)

    def _refusal(self, endpoint: str, status: int, answer: bytes) -> LinkspanError:
        where = f"etcd {endpoint}"
        try:
            refusal = refusal_of(answer)
        except Unavailable:
            text = answer.decode(errors="replace").strip()[:200]
            hint = "ca=FILE is missing" if "HTTPS" in text else "is that etcd v3?"
            return Failed(f"{where}: answered {status}: {text}", hint, False)
        why = refusal.message.removeprefix("etcdserver: ")
        if refusal.code == _EXHAUSTED and "space exceeded" in why:
            hint = f"`linkspan doctor` says what fills it; {STEPS}"
            what = "its quota is full, so it takes no writes (database space exceeded)"  # the latter is etcd's own
            return Full(f"store {where}: {what}", hint)
        if refusal.code not in _SAME_EVERYWHERE | {_UNAUTHENTICATED}:
            return Failed(f"{where}: {why}", "etcdctl endpoint status and its log show more", True)
        return Refused(f"store {where}: {self._words(why, refusal.code)}", self._hint(why, refusal.code), refusal.code)

    def _words(self, why: str, code: int) -> str:
        if "invalid user ID or password" in why:
            return f"user {self.url.user} is refused: wrong name, or wrong password in {self.url.password_file}"
        if "user name is empty" in why or (code == _UNAUTHENTICATED and not self.url.user):
            return "it lets only users in that it knows, and the store's URL names none"
        if code == _DENIED:
            return f"user {self.url.user} may not use {self.url.prefix}: {why}"
        return why

    def _hint(self, why: str, code: int) -> str:
        if code == _DENIED and self.url.user.startswith(HOST_USER):
            return "run the command on the host that it is about, or on a voter (`linkspan cluster members`)"
        if code == _DENIED:
            return f"etcdctl role grant-permission ROLE readwrite {self.url.prefix} --prefix"
        if not self.url.user and ("user name is empty" in why or code == _UNAUTHENTICATED):
            return "add user=NAME&password-file=FILE to the store's URL"
        if "user" in why or code == _UNAUTHENTICATED:
            return "check user and password-file in the store's URL"
        return "etcdctl endpoint status and its log show more"

    def renew(self) -> None:
        """End all streams, and make the next call open a new connection; running calls may finish."""
        for stream in self.streams:
            stream.end()
        if self._calls:
            leaving = asyncio.create_task(_left(self._calls))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            self._calls = None

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        for stream in self.streams:
            stream.end()
        for leaving in self._leaving:
            leaving.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        for session in (self._calls, self._lasting):
            if session:
                await session.close()


class Messages:
    """The messages of a request's body, in the order in which they are sent."""

    def __init__(self, first: Json) -> None:
        self._waiting: asyncio.Queue[Json | None] = asyncio.Queue()
        self._waiting.put_nowait(first)

    def send(self, message: Json) -> None:
        """Send one more message; never waits."""
        self._waiting.put_nowait(message)

    def end(self) -> None:
        """Send no more."""
        self._waiting.put_nowait(None)

    async def sent(self) -> AsyncGenerator[bytes, None]:
        """Yield the messages as bytes, until ``end``."""
        while (message := await self._waiting.get()) is not None:
            yield msgspec.json.encode(message)


class Stream:
    """One long request: its body takes messages, and its answer comes line by line."""

    def __init__(
        self, gateway: Gateway, endpoint: str, response: aiohttp.ClientResponse, messages: Messages
    ) -> None:
        self.endpoint = endpoint
        self.received = 0
        """Bytes so far: a line may take long to arrive."""
        self._gateway = gateway
        self._response = response
        self._messages = messages
        self._buffer = b""
        gateway.streams.add(self)

    def send(self, message: Json) -> None:
        """Send one more message; never waits."""
        self._messages.send(message)

    async def next(self) -> bytes:
        """Return the next line. Raises Unavailable at the end. A caller may cancel it and call it again."""
        try:
            while b"\n" not in self._buffer:
                chunk = await self._response.content.readany()
                if not chunk:
                    raise ConnectionResetError("it ended")
                self._buffer += chunk
                self.received += len(chunk)
        except (aiohttp.ClientError, ValueError, ConnectionError, ssl.SSLError) as error:
            raise self._gateway.failure(self.endpoint, error) from error
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def waiting(self) -> list[bytes]:
        """Return the whole lines that have come with the one that ``next`` returned last."""
        *lines, self._buffer = self._buffer.split(b"\n")
        return lines

    async def rest(self) -> bytes:
        """Return the rest of the answer, up to its end. Raises Unavailable."""
        try:
            return await self._response.read()
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise self._gateway.failure(self.endpoint, error) from error

    def end(self) -> None:
        """Make ``next`` raise Unavailable, also for a task that already waits in it."""
        self._response.content.set_exception(ConnectionResetError("it was closed"))

    def close(self) -> None:
        """Close the request and its connection."""
        self._gateway.streams.discard(self)
        self._messages.end()
        self._response.close()


async def _left(session: aiohttp.ClientSession) -> None:
    """Close a session that gets no new calls, after the running ones have had SECONDS to end."""
    try:
        await asyncio.sleep(SECONDS)
    finally:
        await session.close()


def _session(timeout: aiohttp.ClientTimeout, connections: int) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=connections)
    return aiohttp.ClientSession(connector=connector, timeout=timeout)


def _why(error: Exception) -> str:
    """Return the operating system's text for an error, without what the HTTP library adds."""
    number = getattr(error, "errno", None)
    return (os.strerror(number) if number and number > 0 else str(error) or type(error).__name__).lower()


def _password(path: str) -> str:
    """Return the password in a file, which only root may read. Raises Unavailable, which names the file."""
    try:
        return alone(path).decode("utf-8").rstrip("\r\n")
    except Denied as error:
        raise Unavailable(f"store: password-file {error.message}", error.hint) from error
    except (LinkspanError, UnicodeDecodeError) as error:
        why = str(error).rpartition(": ")[2]
        hint = "write the password into it (and chmod 600), or correct password-file in the store's URL"
        raise Unavailable(f"store: password-file {path} cannot be read: {why}", hint) from error


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


def _context(url: EtcdUrl) -> ssl.SSLContext:
    """Return the TLS settings of a URL. Raises Unavailable, which names the file that cannot be used."""
    file, key = url.ca, "ca"
    try:
        context = ssl.create_default_context(cafile=url.ca or None)
        if url.cert:
            file, key = f"{url.cert} (key {url.key})", "cert and key"
            context.load_cert_chain(url.cert, url.key)
    except (OSError, ValueError) as error:
        why = (getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)).lower()
        hint = f"put it there, or correct {key} in the store's URL"
        raise Unavailable(f"certificate {file} cannot be used: {why}", hint) from error
    return context


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
