"""Client of etcd's HTTP gateway: logs in, and tries one endpoint after the other.

A call goes to the endpoint that answered last; if that fails, to the next. Each gets SECONDS, so a call takes at most
SECONDS times the number of endpoints. A refusal by etcd itself is not retried at another member.

A member whose disk hangs still answers keepalives, progress requests of watches, and questions for its status. So a
member that let a call wait, or whose watch lags, is *doubted*: it is asked last until it answers a call again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import TypeVar

import aiohttp
import msgspec

from linkspan.core.errors import Denied, LinkspanError, Unavailable
from linkspan.core.store_url import EtcdUrl
from linkspan.kernel.io.durable_files import stamps
from linkspan.kernel.io.private_files import alone
from linkspan.store.etcd_errors import (
    LOOK,
    NOT_ENABLED,
    UNAUTHENTICATED,
    Failed,
    Refused,
    explained,
    failure,
    refusal,
)
from linkspan.store.etcd_stream import Messages, Stream
from linkspan.store.etcd_wire import Json, Status, Token, decode

SECONDS = 3.0
"""Seconds for one answer of one endpoint: an election takes 1 to 2 s, an answer 1 ms."""

CONNECTIONS = 4
"""Connections to one endpoint at once, besides the streams: 200 simultaneous calls share them.

An idle agent has three in all: the stream of its watch, the one of its lease, and one for calls. A thousand agents have
6,000 at the most.
"""

BUSY = 10.0
"""The most seconds before a login at a member that was too busy for earlier ones."""

UNUSED = 60.0
"""Seconds after which a connection without calls is closed: a new one costs agent and etcd a handshake of TLS each, and
an idle agent calls every ten seconds."""

T = TypeVar("T")


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
        self._files: tuple[object, ...] = ()
        """How the files looked from which the TLS settings are."""
        self._token = ""
        self._login: tuple[str, asyncio.Task[str]] | None = None
        """The login that is under way, and its endpoint: one at a time, because each costs etcd 70 ms.

        A caller that waits for it no longer does not end it: etcd would do the work all the same, and then once more.
        """
        self._late: Counter[str] = Counter()
        """By endpoint: the logins that one which is up did not answer in time, since it last answered one."""
        self._doubted: set[str] = set()
        """The endpoints that are asked last."""
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
                    if error.silent:
                        self.doubt(endpoint)
                    if not error.dropped:
                        break  # only a closed connection deserves another try: it may have been idle for long
                else:
                    self._doubted.discard(endpoint)
                    self.prefer(endpoint)
                    return answer, sent
        raise await self.unavailable(failures)

    def prefer(self, endpoint: str) -> None:
        """Ask this endpoint first from now on, unless it was taken out meanwhile, or is doubted."""
        if endpoint in self.url.endpoints and not self._is_doubted(endpoint):
            self.endpoint = endpoint

    def doubt(self, endpoint: str) -> None:
        """Ask this endpoint last, until it answers a call."""
        self._doubted.add(endpoint)
        self.endpoint = self.order()[0]

    def _is_doubted(self, endpoint: str) -> bool:
        """Return whether an endpoint is doubted, and another one is not: if all are, that is no fault of a member's."""
        return endpoint in self._doubted and not self._doubted.issuperset(self.url.endpoints)

    def follow(self, endpoints: tuple[str, ...]) -> None:
        """Use these endpoints (HOST:PORT, at least one) from now on; running calls and streams go on."""
        self.url = msgspec.structs.replace(self.url, endpoints=endpoints)
        if self.endpoint not in endpoints:
            self.endpoint = random.choice(endpoints)  # noqa: S311 - it spreads, and hides nothing

    def order(self) -> tuple[str, ...]:
        """Return the endpoints in the order in which they are asked.

        The one that answered last is the first, and doubted ones are the last.
        """
        first = self.url.endpoints.index(self.endpoint)
        return tuple(sorted(self.url.endpoints[first:] + self.url.endpoints[:first], key=self._is_doubted))

    async def unavailable(self, failures: Mapping[str, Failed]) -> Unavailable:
        """Return the error for a call that no endpoint answered, with the reason of each."""
        self._context = None  # certificates may be renewed meanwhile
        told = await asyncio.gather(*(explained(self.url, endpoint, error) for endpoint, error in failures.items()))
        worst = next((one for one in told if one.silent), told[0])  # it is up: the others may be missing
        return Unavailable(f"store {'; '.join(one.message for one in told)}", worst.hint)

    async def ask(self, path: str, body: Json, kind: type[T], seconds: float = 0) -> T:
        """Return the answer to a request that may be carried out twice. Raises as ``call`` does."""
        return decode((await self.call(path, body, seconds))[0], kind)

    async def at(self, endpoint: str, path: str, body: Json, seconds: float) -> bytes:
        """Return the answer of this one endpoint, which gets ``seconds`` for it. Raises Unavailable."""
        return await self._ask_as_user(endpoint, path, body, seconds)

    async def openly(self, endpoint: str, path: str, body: Json, seconds: float) -> bytes:
        """Return an endpoint's answer to what etcd tells without a user: its status, its members. Raises Unavailable.

        A login needs a quorum, and this does not.
        """
        return await self._ask(endpoint, path, body, "", seconds)

    async def _ask_as_user(self, endpoint: str, path: str, body: Json, seconds: float) -> bytes:
        token = await self._logged_in(endpoint, stale="") if self.url.user else ""
        try:
            return await self._ask(endpoint, path, body, token, seconds)
        except Failed as error:
            await self._doubt(endpoint, token, error)
            raise
        except Refused as error:
            # A token is valid for some minutes; it ends sooner if its member restarts or users change.
            if not token or not (error.number == UNAUTHENTICATED or "auth store is old" in error.message):
                raise
        return await self._ask(endpoint, path, body, await self._logged_in(endpoint, stale=token), seconds)

    async def _doubt(self, endpoint: str, token: str, error: Failed) -> None:
        """Drop the token if a member that is up let a call with it wait.

        A token names the revision of raft's log that a member must have reached. One that was restored from a backup
        has not, and waits for it instead of refusing the token. After any other outage the token is as good as before.
        """
        if token and error.silent and await self._is_up(endpoint) and self._token == token:
            self._token = ""

    async def _is_up(self, endpoint: str) -> bool:
        """Return whether a member answers, and has a leader: otherwise no call with a user gets an answer."""
        try:
            told = decode(await self.openly(endpoint, "/v3/maintenance/status", {}, LOOK), Status)
        except LinkspanError:
            return False
        return not any("no leader" in one for one in told.errors)

    async def _logged_in(self, endpoint: str, stale: str) -> str:
        """Return a token other than the stale one; '' if this etcd lets everyone in. Raises as ``_ask`` does."""
        if self._token and self._token != stale:
            return self._token
        while True:
            if self._login is None or self._login[1].done():
                self._login = endpoint, asyncio.create_task(self._log_in(endpoint))
            at, login = self._login
            try:
                return await asyncio.shield(login)
            except Failed:
                if at == endpoint:
                    raise
            except asyncio.CancelledError:
                if login.cancelled():
                    self._refuse_closed()
                raise

    async def _log_in(self, endpoint: str) -> str:
        """Log in at an endpoint. If it was too busy before, first wait: all hosts log in at once after an outage."""
        if tries := self._late[endpoint]:
            await asyncio.sleep(random.uniform(0, min(2.0 * tries, BUSY)))  # noqa: S311 - it spreads
        body = {"name": self.url.user, "password": _password(self.url.password_file)}
        try:
            answer = await self._ask(endpoint, "/v3/auth/authenticate", body, "")
        except Refused as error:
            if error.number == NOT_ENABLED:
                return ""  # this etcd lets everyone in
            raise
        except Failed as error:
            if error.silent and await self._is_up(endpoint):
                self._late[endpoint] += 1
            raise
        self._late.clear()
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
            raise refusal(self.url, endpoint, response.status, answer)
        return answer

    async def stream(
        self, endpoint: str, path: str, body: Json, seconds: float = 0, *, openly: bool = False
    ) -> Stream:
        """Open a stream at one endpoint, and send its first message. The caller closes it.

        Etcd gets ``seconds`` (0: SECONDS) to begin its answer. ``openly``: etcd asks for no user there, so this waits
        for no login. Raises Unavailable.
        """
        token = await self._logged_in(endpoint, stale="") if self.url.user and not openly else ""
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
                failed = self.failure(endpoint, error, seconds)
                await self._doubt(endpoint, token, failed)
                raise failed from error
            raise
        stream = Stream(endpoint, response, messages, self.streams, partial(self.failure, endpoint))
        if response.status != 200:
            with contextlib.closing(stream):
                raise refusal(self.url, endpoint, response.status, await stream.rest())
        return stream

    def _refuse_closed(self) -> None:
        if self._closed:
            raise Unavailable(f"store etcd {self.endpoint} is closed", "the agent is stopping")

    async def _tls(self) -> ssl.SSLContext | bool:
        """Return the TLS settings of a call; the files are read again after each failure, and when they change.

        Open connections and streams stay: a certificate that is renewed ends no watch. An operator changes one file
        after the other, so files that do not fit together yet change nothing.
        """
        if not self.url.tls:
            return True
        seen = stamps(filter(None, (self.url.ca, self.url.cert, self.url.key)))
        if self._context is None or seen != self._files:
            try:
                self._context = await asyncio.to_thread(_context, self.url)
            except Unavailable:
                if self._context is None:
                    raise
            self._files = seen
        return self._context

    def failure(self, endpoint: str, error: Exception, seconds: float = 0) -> Failed:
        """Return the linkspan error for the exception of a call that had ``seconds`` (0: SECONDS)."""
        return failure(self.url, endpoint, error, seconds or SECONDS)

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
        if self._login is not None:
            self._login[1].cancel()
        for leaving in self._leaving:
            leaving.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        for session in (self._calls, self._lasting):
            if session:
                await session.close()


async def _left(session: aiohttp.ClientSession) -> None:
    """Close a session that gets no new calls, after the running ones have had SECONDS to end."""
    try:
        await asyncio.sleep(SECONDS)
    finally:
        await session.close()


def _session(timeout: aiohttp.ClientTimeout, connections: int) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=connections, keepalive_timeout=UNUSED)
    return aiohttp.ClientSession(connector=connector, timeout=timeout)


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
