"""Server of the page: login, data, live changes, and questions to the agent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import web

from linkspan.core.errors import Denied, Invalid, LinkspanError, NotFound, Unavailable
from linkspan.core.sentences import Sentences
from linkspan.core.supervise import ended, lasting
from linkspan.web import files, login_texts
from linkspan.web.access import Access, Session
from linkspan.web.agent_questions import AgentQuestions
from linkspan.web.answer_language import translated
from linkspan.web.connections import Connections
from linkspan.web.container_list import Wanted
from linkspan.web.feed import Feed
from linkspan.web.pace import Pace
from linkspan.web.shared_answers import SharedAnswers

log = logging.getLogger("linkspan.web.server")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

IDLE = 15.0
"""Seconds without a message after which a viewer gets a comment: one that is gone is noticed by it."""
STATE_WITHIN = 15.0
"""Seconds after which an agent that is asked for its state counts as hanging: the page says so."""
LARGEST = 4096
"""Bytes of a request's body, at most."""
LONGEST = 300
"""Characters of a word in a question, at most."""
ADDRESSES = 500
"""Addresses that one answer has at most."""
PACKETS = 5, 2.0
"""Traces with a real packet: so many at once, and one more each so many seconds."""
SURVEYS = 1, 15.0
"""The same for probes between all hosts, which take five seconds."""

QUESTIONS = {
    "doctor": "/v1/doctor",
    "drift": "/v1/diff",
    "bgp": "/v1/bgp/peers",
    "address-check": "/v1/address-check",
}
"""What the page asks the agent without further words."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "linkspan",
}

STATUS = {"invalid": 400, "denied": 403, "not_found": 404, "conflict": 409, "unavailable": 503}

HEADER = "X-Linkspan-Token"
"""The header in which the page sends its session's token."""
_PLAIN = "<!doctype html><html lang={language}><meta charset=utf-8>{head}<title>linkspan</title><p>{text}</p></html>"


class PacketBody(msgspec.Struct, frozen=True):
    """A trace with a real packet: its ends and port."""

    source: str
    target: str
    port: str = ""


class PageServer:
    """Serves the page of one agent; ``others`` are agents of other hosts that answer here, too, by their hosts' names.

    ``sends`` says whether the agent lets this user send packets. ``lab`` is the lab's name, '' if it is none.
    """

    def __init__(
        self,
        access: Access,
        agent: AgentQuestions,
        others: Mapping[str, AgentQuestions],
        lab: str,
        *,
        sends: bool,
    ) -> None:
        self.connections = Connections()
        self._access = access
        self._agent = agent
        self._others = others
        self._sends = sends
        about = {"lab": lab, "sends": sends, "others": sorted(others)}
        self._feed = Feed(AgentQuestions(agent.path, STATE_WITHIN), about)
        self._answers = SharedAnswers(agent.get)
        self._paths_told = SharedAnswers(agent.post if sends else agent.get)
        self._parts = SharedAnswers(self._part)
        self._plans = {name: SharedAnswers(one.get) for name, one in others.items()}
        self._packets, self._surveys = Pace(*PACKETS), Pace(*SURVEYS)
        self._files = files.read()
        self._policy = files.policy()

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(middlewares=[self._guarded], client_max_size=LARGEST)
        app.on_response_prepare.append(self._with_headers)
        app.cleanup_ctx.append(self._running)
        app.on_shutdown.append(self._end_streams)
        app.add_routes(
            [
                web.get("/login", self._log_in, allow_head=False),
                web.get("/", self._file, allow_head=False),
                web.get("/api/state", self._state, allow_head=False),
                web.get("/api/stream", self._stream, allow_head=False),
                web.get("/api/containers", self._containers, allow_head=False),
                web.get("/api/trace", self._trace, allow_head=False),
                web.post("/api/trace", self._packet),
                web.post("/api/peers", self._peers),
                web.get("/api/paths", self._paths, allow_head=False),
                web.get("/api/plan", self._plan, allow_head=False),
                web.get("/api/addresses", self._addresses, allow_head=False),
                web.get("/api/migration/{network}", self._migration, allow_head=False),
                web.get("/api/bgp/{peer}", self._explain, allow_head=False),
                web.get("/api/{question}", self._question, allow_head=False),
                web.get("/{file:.+}", self._file, allow_head=False),
            ]
        )
        return app

    async def _running(self, _app: web.Application) -> AsyncIterator[None]:
        task = lasting("the page's feed", self._feed.run)
        yield
        await ended(task)

    async def _end_streams(self, _app: web.Application) -> None:
        self._feed.end()

    async def _with_headers(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Content-Security-Policy"] = self._policy
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.update(HEADERS)

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what does not come from the page of a user who has logged in, and answer errors as JSON."""
        entry = not request.path.startswith("/api/")
        try:
            why = self._access.refusal(
                request.method,
                request.headers.getall("Host", []),
                request.headers.get("Origin"),
                request.headers.get("Sec-Fetch-Site"),
                entry=entry,
            )
            if why:
                raise Denied(why)
            if request.path != "/login":
                session = self._session(request)
                if session is not None and session.may_ask(request.headers.get(HEADER, "")):
                    self.connections.known(request.protocol)
                elif session is None or not entry:
                    return _refused(request, "no session")
            return await handler(request)
        except LinkspanError as error:
            told = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
            return await _told(request, told, STATUS.get(error.code, 500))
        except web.HTTPException as error:
            return _json({"error": {"code": "error", "message": error.reason, "hint": ""}}, error.status)
        except ConnectionError:
            raise
        except Exception:  # a defect in one answer: the page shows that it failed, and all others go on
            log.exception("%s %s", request.method, request.path)
            return _json({"error": {"code": "error", "message": "the server failed", "hint": "its log says more"}}, 500)

    def _session(self, request: web.Request) -> Session | None:
        return self._access.session(request.cookies.get(self._access.cookie, ""))

    async def _log_in(self, request: web.Request) -> web.Response:
        browser = "text/html" in request.headers.get("Accept", "")
        cookie = self._access.log_in(request.query.get("token", ""), browser=browser)
        session = self._access.session(cookie)
        if session is None:
            return _refused(request, "used link")
        # A page that goes on by itself, and no redirect: see the head of the package.
        head = f'<meta name="token" content="{session.token}"><script type="module" src="/login.js"></script>'
        text = _PLAIN.format(language="en", head=head, text='<a href="/">linkspan</a>')
        response = web.Response(text=text, content_type="text/html")
        response.set_cookie(
            self._access.cookie, cookie, path="/", httponly=True, secure=self._access.secure, samesite="Strict"
        )
        return response

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info.get("file", "index.html")
        found = self._files.get(name)
        if found is None:
            raise NotFound(f"the page has no file {name[:LONGEST]!r}")
        if name == "index.html":
            self._feed.prepare()
        tag = f'"{found.etag}"'
        headers = {"Cache-Control": "no-cache", "ETag": tag, "Vary": "Accept-Encoding"}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(
            body=found.content, headers={**headers, "Content-Type": found.type, "Content-Encoding": "gzip"}
        )

    async def _state(self, request: web.Request) -> web.Response:
        session = self._session(request)
        assert session is not None, "the guard has found it"
        return _json({"state": await self._feed.state(), "packet_token": session.token})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        async with contextlib.aclosing(self._feed.view(IDLE)) as messages:
            first = await anext(messages)  # raises before the answer begins
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                await response.write(first)
                async for message in messages:
                    if self._session(request) is None:
                        break
                    await response.write(message)
        return response

    async def _containers(self, request: web.Request) -> web.Response:
        words = {name: _word(request, name) for name in ("search", "host", "network")}
        page = request.query.get("page", "0")
        if not page.isascii() or not page.isdigit() or len(page) > 6:
            raise Invalid("page is no number")
        return _json(await self._parts.get(Wanted(**words, page=int(page))))

    async def _part(self, wanted: Wanted) -> dict[str, Any]:
        return await asyncio.to_thread((await self._feed.containers()).part, wanted)

    async def _trace(self, request: web.Request) -> web.Response:
        words = {name: _word(request, name) for name in ("source", "target", "port")}
        return await _told(request, await self._answers.get(f"/v1/trace?{urlencode(words)}"))

    async def _packet(self, request: web.Request) -> web.Response:
        self._may_send(request, self._packets)
        try:
            wanted = msgspec.json.decode(await request.read(), type=PacketBody)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid(f"the request is wrong: {error}") from error
        words = {name: getattr(wanted, name)[:LONGEST] for name in ("source", "target", "port")}
        return await _told(request, await self._agent.post(f"/v1/trace?{urlencode(words)}"))

    async def _peers(self, request: web.Request) -> web.Response:
        self._may_send(request, self._surveys)
        return await _told(request, await self._agent.post("/v1/doctor/peers"))

    def _may_send(self, request: web.Request, pace: Pace) -> None:
        """Raise Denied unless this request may send packets, and Unavailable if there were too many."""
        session, given = self._session(request), request.headers.get(HEADER, "")
        if session is None or not session.sent_by(given):
            raise Denied("the request has no token of this page", "load the page again")
        if not self._sends:
            raise Denied("only root may send packets", "run `sudo linkspan web`, or `sudo linkspan trace --live`")
        if (seconds := pace.wait()) > 0:
            raise Unavailable(f"too many packets were sent; the next one may be sent in {seconds:.0f} s")

    async def _paths(self, request: web.Request) -> web.Response:
        """Answer with what all hosts have measured; for a user who may not ask them, with what this host has."""
        return await _told(request, await self._paths_told.get("/v1/paths"))

    async def _plan(self, request: web.Request) -> web.Response:
        """Answer with the commands of one host that name a container's id, an interface, a host or a network."""
        host, word = _word(request, "host"), _word(request, "word")
        here = (await self._feed.state())["about"]["here"]
        answers = self._answers if host == here else self._plans.get(host)
        if answers is None:
            raise NotFound(f"this page asks the agent of host {here}", f"run `linkspan plan` on host {host}")
        network = _word(request, "network")
        lines = await answers.get(f"/v1/plan?{urlencode({'network': network})}" if network else "/v1/plan")
        # In a thread: a host with thousands of containers has tens of thousands of lines, and others wait for answers.
        return web.Response(body=await asyncio.to_thread(naming, lines, word), content_type="application/json")

    async def _addresses(self, request: web.Request) -> web.Response:
        """Answer with the first addresses in use of a network, and how many there are."""
        network = _word(request, "network")
        found = await self._answers.get(f"/v1/addresses?{urlencode({'network': network})}")
        return _json({"total": len(found), "addresses": found[:ADDRESSES]})

    async def _migration(self, request: web.Request) -> web.Response:
        return _json(await self._answers.get(f"/v1/networks/{quote(request.match_info['network'], safe='')}"))

    async def _explain(self, request: web.Request) -> web.Response:
        peer = quote(request.match_info["peer"], safe="")
        return await _told(request, await self._answers.get(f"/v1/bgp/explain/{peer}"))

    async def _question(self, request: web.Request) -> web.Response:
        url = QUESTIONS.get(request.match_info["question"])
        if url is None:
            raise NotFound("the page has no such question")
        return await _told(request, await self._answers.get(url))


def naming(lines: Iterable[Mapping[str, Any]], word: str) -> bytes:
    """Return as JSON the lines of a plan that name a word as a whole ("": all of them)."""
    named = re.compile(rf"(?<![\w.-]){re.escape(word)}(?![\w.-])")  # h1 is no part of h10
    found = [one for one in lines if not word or named.search(one["why"]) or named.search(one["command"])]
    return msgspec.json.encode(found)


def _word(request: web.Request, name: str) -> str:
    word = request.query.get(name, "")
    if len(word) > LONGEST:
        raise Invalid(f"{name} has {len(word)} characters, more than {LONGEST}")
    return word


async def _told(request: web.Request, value: object, status: int = 200) -> web.Response:
    """Return an answer of the agent in the reader's language."""
    language = login_texts.language(request.headers.get("Accept-Language", ""))
    if language != "en":  # in a thread: a doctor says a hundred sentences, and each is compared with hundreds
        value = await asyncio.to_thread(translated, value, Sentences(language))
    return _json(value, status)


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _refused(request: web.Request, reason: login_texts.Reason) -> web.Response:
    """Return a page for somebody without a session."""
    language, text = login_texts.text(reason, request.headers.get("Accept-Language", ""))
    page = _PLAIN.format(language=language, head="", text=text)
    return web.Response(text=page, status=401, content_type="text/html")
