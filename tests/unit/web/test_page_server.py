"""Server of the page, over real sockets, with an agent that answers what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from linkspan.core.errors import Invalid
from linkspan.web import feed, files, server, serving
from linkspan.web.listening import place
from support.polling import SHARED, eventually
from support.web.answers import FakeAgent, endpoint

DOWN = "link eth0 in host is down"


class Visit:
    """A browser, as far as HTTP goes, at a page of an agent."""

    def __init__(self, agent: FakeAgent, new_link: Callable[[], str], session: aiohttp.ClientSession) -> None:
        self.agent, self.new_link, self.session = agent, new_link, session
        self.link = new_link()
        self.origin = self.link.partition("/login")[0]

    async def get(self, path: str, **headers: str) -> tuple[int, str, aiohttp.ClientResponse]:
        """Return status, text and answer of a GET; ``_`` stands for a hyphen in headers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(f"{self.origin}{path}", headers=named) as answer:
            return answer.status, await answer.text(), answer

    async def log_in(self) -> None:
        """Open a link."""
        status, _, _ = await self.get(self.new_link().removeprefix(self.origin))
        assert status == 200

    async def token(self) -> str:
        """Return the token for packets."""
        return str(json.loads((await self.get("/api/state"))[1])["packet_token"])

    async def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        """Return status and answer of a POST of this page."""
        named = {"Origin": self.origin, **{name.replace("_", "-"): value for name, value in headers.items()}}
        async with self.session.post(f"{self.origin}{path}", json=body, headers=named) as answer:
            return answer.status, await answer.json()

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[Callable[[], Awaitable[tuple[str, Any]]]]:
        """Give a function that returns the next message of the live stream."""
        async with self.session.get(f"{self.origin}/api/stream") as answer:
            assert answer.status == 200

            async def message() -> tuple[str, Any]:
                while True:
                    event = (await answer.content.readuntil(b"\n\n")).decode()
                    if event.startswith("event"):
                        kind, _, data = event.partition("\n")
                        return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))

            yield message


@contextlib.asynccontextmanager
async def visit() -> AsyncIterator[Visit]:
    """Give a browser that has not logged in."""
    with tempfile.TemporaryDirectory() as folder:
        agent = FakeAgent(Path(folder, "agent.sock"))
        jar = aiohttp.CookieJar(unsafe=True)  # cookies of addresses, too
        async with (
            agent.serving(),
            serving.page(place("127.0.0.1:0"), str(agent.path), {}, "") as new_link,
            aiohttp.ClientSession(cookie_jar=jar) as session,
        ):
            yield Visit(agent, new_link, session)


def test_a_link_logs_in_once_and_the_cookie_is_out_of_reach() -> None:
    """No script reads it, and no other page's request carries it."""

    async def run() -> None:
        async with visit() as page:
            path = page.link.removeprefix(page.origin)
            status, text, answer = await page.get(path)
            assert status == 200
            assert 'src="/login.js"' in text
            cookie = answer.headers["Set-Cookie"]
            assert re.match(r"linkspan-[0-9a-f]{16}=", cookie)
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
            assert (await page.get("/api/state"))[0] == 200
            page.session.cookie_jar.clear()
            assert (await page.get(path))[0] == 401, "the link was used"

    asyncio.run(run())


@pytest.mark.parametrize(
    "path", ["/api/state", "/api/stream", "/api/containers", "/api/trace?source=c1&target=c2", "/api/doctor"]
)
def test_a_browsers_cookie_alone_shows_nothing(path: str) -> None:
    """It goes to every port of the host, so another user's server there has it; the token stays with the page."""

    async def run() -> None:
        async with visit() as page:
            _, text, _ = await page.get(page.link.removeprefix(page.origin), Accept="text/html,*/*;q=0.8")
            found = re.search(r'<meta name="token" content="([\w-]{43})">', text)
            assert found is not None
            assert (await page.get("/login.js"))[0] == 200
            assert (await page.get(path))[0] == 401
            assert (await page.get(path, X_Linkspan_Token="x" * 43))[0] == 401
            assert page.agent.asked == []
            async with page.session.get(f"{page.origin}{path}", headers={"X-Linkspan-Token": found[1]}) as answer:
                assert answer.status == 200

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/", "/app.js", "/api/state", "/api/stream", "/api/trace", "/api/doctor", "/nothing"])
def test_without_login_there_is_nothing(path: str) -> None:
    """Neither data nor the page's files; with a cookie that somebody made up, neither."""

    async def run() -> None:
        async with visit() as page:
            assert (await page.get(path))[0] == 401
            assert (await page.get(path, Cookie="linkspan-0123456789abcdef=x"))[0] == 401
            assert (await page.get("/login?token=wrong"))[0] == 401
            assert page.agent.asked == []

    asyncio.run(run())


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_requests_of_other_pages_are_refused(headers: dict[str, str]) -> None:
    """Also with the right cookie."""

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            status, text, _ = await page.get("/api/state", **headers)
            assert status == 403
            assert json.loads(text)["error"]["code"] == "denied"
            assert page.agent.asked == []

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/", "/login?token=x", "/api/state", "/api/nothing", "/vendor/cytoscape.js"])
def test_every_answer_has_the_strict_headers(path: str) -> None:
    """Refusals, too."""

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            headers = (await page.get(path))[2].headers
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert "*" not in policy
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert "Python" not in headers["Server"]

    asyncio.run(run())


def test_nothing_but_get_reads() -> None:
    """Other methods have no route; what sends packets is a POST of this page, with its token."""

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            for method in ("HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"):
                request = page.session.request(method, f"{page.origin}/api/state", headers={"Origin": page.origin})
                async with request as answer:
                    assert answer.status == 405, method
            assert page.agent.asked == []

    asyncio.run(run())


def test_packets_need_the_pages_token_and_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """And they are limited in number."""
    ends = {"source": "c1", "target": "c2"}

    async def run(root: bool) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 0 if root else 1000)
        async with visit() as page:
            await page.log_in()
            assert (await page.post("/api/trace", ends))[0] == 403, "no token"
            assert (await page.post("/api/trace", ends, X_Linkspan_Token="x" * 43))[0] == 403
            token = await page.token()
            status, told = await page.post("/api/trace", ends, X_Linkspan_Token=token)
            if not root:
                assert (status, told["error"]["message"]) == (403, "only root may send packets")
                return
            assert (status, told) == (200, {"asked": "/v1/trace?source=c1&target=c2&port="})
            assert page.agent.asked[-1].startswith("POST")
            rest = [(await page.post("/api/trace", ends, X_Linkspan_Token=token))[0] for _ in range(5)]
            assert rest[-1] == 503, rest

    asyncio.run(run(root=False))
    asyncio.run(run(root=True))


@pytest.mark.parametrize(("user", "asked"), [(0, "POST /v1/paths"), (1000, "GET /v1/paths")])
def test_only_roots_page_asks_all_hosts_what_they_have_measured(
    monkeypatch: pytest.MonkeyPatch, user: int, asked: str
) -> None:
    """Every host of the cluster pays for it; another user's page has what this host has measured."""
    monkeypatch.setattr("os.geteuid", lambda: user)

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            assert (await page.get("/api/paths"))[0] == 200
            assert page.agent.asked == [asked]

    asyncio.run(run())


def test_a_plan_has_the_lines_that_name_a_word_as_a_whole() -> None:
    """Host h1 is not named by the commands for h10."""

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            page.agent.more["plan"] = lines = [
                {"why": f"for network demo, to reach host {host}", "command": "ip route"} for host in ("h10", "h1")
            ]
            _, text, _ = await page.get("/api/plan?host=h1&word=to%20reach%20host%20h1")
            assert json.loads(text) == lines[1:]

    asyncio.run(run())


def test_others_are_answered_while_a_long_plan_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search lasts here until somebody else has been answered."""
    answered, naming = threading.Event(), server.naming

    def held(lines: Iterable[Mapping[str, Any]], word: str) -> bytes:
        assert answered.wait(10 * SHARED)
        return naming(lines, word)

    monkeypatch.setattr(server, "naming", held)

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            page.agent.more["plan"] = lines = [{"why": "for network demo", "command": "ip route"}]
            asked = asyncio.create_task(page.get("/api/plan?host=h1&word=demo"))
            await eventually(lambda: any("plan" in one for one in page.agent.asked), "the plan is asked for")
            assert (await page.get("/api/state"))[0] == 200
            answered.set()
            assert json.loads((await asked)[1]) == lines

    asyncio.run(run())


def test_hostile_words_reach_the_agent_as_words() -> None:
    """They cannot leave their place in the question, and long ones are refused."""

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            await page.get("/api/trace?source=a%26target%3Dx%23&target=b%0d%0aX:1")
            assert page.agent.asked[-1] == "GET /v1/trace?source=a%26target%3Dx%23&target=b%0D%0AX%3A1&port="
            await page.get("/api/migration/..%2f..%2fv1%2fstatus")
            assert "/v1/networks/..%2F..%2Fv1%2Fstatus" in page.agent.asked[-1] or "%2e" in page.agent.asked[-1]
            asked = len(page.agent.asked)
            assert (await page.get(f"/api/trace?source={'x' * 10_000}"))[0] in (400, 414)
            assert (await page.get("/api/..%2f..%2fetc%2fpasswd"))[0] == 404
            assert (await page.get("/vendor/vendor.json"))[0] == 404
            assert len(page.agent.asked) == asked

    asyncio.run(run())


@pytest.mark.parametrize(("accepted", "why"), [("zh", "host 里的网卡 eth0 处于 down 状态"), ("en", DOWN), ("", DOWN)])
def test_sentences_are_in_the_readers_language(accepted: str, why: str) -> None:
    """Of traces, checks and errors; what the server does not know, and names, stay as they are."""
    check = {"check": "underlay", "status": "fail", "detail": DOWN, "fix": "ip link set eth0 up"}
    told = {"reason": DOWN, "hops": [{"host": "is down", "detail": DOWN}], "unknown": [{"at": "h1", "why": DOWN}]}

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            page.agent.more |= {"trace": told, "doctor": [check]}
            _, text, _ = await page.get("/api/trace?source=c1&target=c2", Accept_Language=accepted)
            hop = {"host": "is down", "detail": why}
            assert json.loads(text) == {"reason": why, "hops": [hop], "unknown": [{"at": "h1", "why": why}]}
            _, text, _ = await page.get("/api/doctor", Accept_Language=accepted)
            assert json.loads(text) == [check | {"detail": why}]
            _, text, _ = await page.get("/api/plan?host=h2&word=x", Accept_Language=accepted)
            assert ("这个网页" in json.loads(text)["error"]["message"]) == (accepted == "zh")

    asyncio.run(run())


def test_a_question_of_several_viewers_is_asked_once() -> None:
    """The agent answers all of them by one walk."""

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            await asyncio.gather(*(page.get("/api/trace?source=c1&target=c2") for _ in range(5)))
            assert len([one for one in page.agent.asked if "trace" in one]) == 1

    asyncio.run(run())


def test_changes_come_to_all_viewers_by_one_stream_of_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event makes the server look, and what differs is sent."""
    monkeypatch.setattr(feed, "PUBLISH", 0.01)

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            async with page.stream() as first, page.stream() as second:
                for message in (first, second):
                    kind, told = await message()
                    assert kind == "state"
                    assert set(told["state"]["containers"]) == {"c1/eth0", "c2/eth0"}
                await eventually(lambda: page.agent.streams, "the agent's events are followed")
                page.agent.answers.endpoints.append(endpoint("c3", "h1"))
                await page.agent.tell(at=5.0, type="attach", what="c3 was attached")
                for message in (first, second):
                    events: list[Any] = []
                    put: dict[str, Any] = {}
                    while not (events and put):
                        kind, told = await message()
                        assert kind == "change"
                        events += told["events"]
                        put |= told["change"].get("containers", {}).get("put", {})
                    assert set(put) == {"c3/eth0"}
                    assert [one["what"] for one in events] == ["c3 was attached"]
                assert page.agent.streams == 1

    asyncio.run(run())


def test_the_state_is_read_once_for_a_page_while_its_files_come() -> None:
    """The stream that the page asks for later has it already."""

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            await page.get("/")
            await eventually(lambda: "GET /v1/status" in page.agent.asked, "the agent is asked")
            async with page.stream() as message:
                assert (await message())[1]["state"]["containers"].keys() == {"c1/eth0", "c2/eth0"}
                assert page.agent.asked.count("GET /v1/status") == 1

    asyncio.run(run())


def test_without_viewers_the_agent_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that was closed costs nothing."""
    monkeypatch.setattr(feed, "RENEW", 0.02)
    monkeypatch.setattr(feed, "SHARE", 0)

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            async with page.stream() as message:
                await message()
                count, begun = len(page.agent.asked), time.monotonic()
                await eventually(lambda: len(page.agent.asked) > count + 16, "the state is read again and again")
                took = time.monotonic() - begun
            await eventually(lambda: not page.agent._streams, "the agent's events are followed no more")
            before = len(page.agent.asked)
            await asyncio.sleep(took)  # in as much time as sixteen questions took on this machine
            assert len(page.agent.asked) - before <= 4

    asyncio.run(run())


def test_an_agent_that_goes_and_comes_back_is_told() -> None:
    """The picture stays meanwhile."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            agent = FakeAgent(Path(folder, "agent.sock"))
            where = place("127.0.0.1:0")
            jar = aiohttp.CookieJar(unsafe=True)
            async with (
                serving.page(where, str(agent.path), {}, "") as new_link,
                aiohttp.ClientSession(cookie_jar=jar) as session,
            ):
                page = Visit(agent, new_link, session)
                await page.log_in()
                async with page.stream() as message:
                    _, told = await message()
                    assert "no agent answers" in told["state"]["about"]["away"]
                    async def away() -> str | None:
                        change = (await message())[1]["change"]
                        found: str | None = change.get("about", {}).get("put", {}).get("away")
                        return found

                    async with agent.serving():
                        while await away() != "":
                            pass
                    while not await away():
                        pass
                state = json.loads((await page.get("/api/state"))[1])["state"]
                assert set(state["containers"]) == {"c1/eth0", "c2/eth0"}

    asyncio.run(run())


def test_the_page_is_small() -> None:
    """200 kB in all, as it is sent."""
    found = files.read()
    assert sum(len(one.content) for one in found.values()) <= 200_000
    assert {"index.html", "app.js", "style.css", "vendor/cytoscape.js"} <= set(found)


def test_all_modules_of_the_table_are_asked_for_at_once() -> None:
    """The page's head names them: a browser that finds each in the one before it asks again and again."""
    text = (files.FOLDER / "index.html").read_text(encoding="utf-8")
    (table,) = re.findall(r'<script type="importmap">(.*?)</script>', text)
    names = json.loads(table)["imports"]
    found, left = set[str](), ["/app.js"]
    while left:
        found.add(path := left.pop())
        source = (files.FOLDER / path.removeprefix("/")).read_text(encoding="utf-8")
        imported = {names.get(one, one) for one in re.findall(r'^import\b.*?from ?"([^"]+)"', source, re.MULTILINE)}
        left += imported - found
    assert {"/app.js", *re.findall(r'rel="modulepreload" href="([^"]+)"', text)} == found


def test_the_policy_knows_the_style_that_cytoscape_injects() -> None:
    """Its text is that of the vendored version."""
    library = (files.FOLDER / "vendor" / "cytoscape.js").read_text(encoding="utf-8")
    name, _, rest = files.INJECTED_STYLE.partition(" ")
    assert name.removeprefix(".") in library
    assert rest in library


def test_the_page_asks_nobody_else() -> None:
    """No file that linkspan wrote has the address of another server."""
    for path in files.FOLDER.glob("*.*"):
        found = re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]+", path.read_text(encoding="utf-8"))
        assert set(found) <= {"http://www.w3.org"}, path


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.1:8080", "other machines reach 192.0.2.1"),
        ("0.0.0.0:8080", "other machines reach 0.0.0.0"),
        ("[::]:8080", "other machines reach ::"),
        ("localhost:80", "is not ADDRESS:PORT"),
        ("127.0.0.1", "is not ADDRESS:PORT"),
        ("127.0.0.1:99999", "is not ADDRESS:PORT"),
    ],
)
def test_without_tls_only_this_machine_is_listened_to(text: str, why: str) -> None:
    """The error says what to do."""
    with pytest.raises(Invalid, match=re.escape(why)):
        place(text)


def test_an_agent_without_its_store_shows_what_it_knew() -> None:
    """The list that it cannot give now stays, with a problem that says so."""

    async def run() -> None:
        async with visit() as page:
            await page.log_in()
            await page.get("/api/state")
            page.agent.refused.add("endpoints")
            async with page.stream() as message:
                _, told = await message()
                while not (problems := told["state"]["problems"]):
                    change = (await message())[1]["change"]
                    told = {"state": {"problems": change.get("problems", {}).get("put")}}
                assert problems["000"]["why"] == "endpoints may be out of date: no store"
            state = json.loads((await page.get("/api/state"))[1])["state"]
            assert set(state["containers"]) == {"c1/eth0", "c2/eth0"}
            assert state["about"]["away"] == ""

    asyncio.run(run())
