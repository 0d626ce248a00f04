"""Questions to an agent, asked from an event loop: its answers, and its events as they come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import aiohttp
import msgspec

from linkspan.api.client import PATIENCE, Client, no_answer
from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.core.escapes import plain, shown

T = TypeVar("T")

LONGEST_LINE = 1 << 20
"""Bytes of an event: a longer one is no event of an agent."""


class AgentQuestions:
    """Asks the agent of one socket. Texts in its answers have no control characters left: they may be anybody's.

    Every call raises LinkspanError: the agent's own, or Unavailable if the agent does not answer.
    """

    def __init__(self, path: str, patience: float = PATIENCE) -> None:
        """``patience``: the seconds without a byte of an answer after which the agent counts as hanging."""
        self.path = path
        self._client = Client(path, patience)

    async def get(self, url: str) -> Any:
        """Return the answer to a GET."""
        return await _apart(lambda: self._ask("GET", url))

    async def post(self, url: str) -> Any:
        """Return the answer to a POST, which only root may send."""
        return await _apart(lambda: self._ask("POST", url))

    def _ask(self, method: str, url: str) -> Any:
        return shown(self._client.call(method, url))

    async def list(self, url: str) -> list[Any]:
        """Return the items of a long list."""
        return await _apart(lambda: _items(self._client, url))

    async def events(self, last: int, since: float) -> AsyncIterator[dict[str, Any]]:
        """Yield the ``last`` events since a time, then each new one, until the agent ends: then raise Unavailable."""
        connector = aiohttp.UnixConnector(self.path)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        wanted = {"follow": "", "last": str(last), "since": repr(since)}
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=LONGEST_LINE) as session,
                session.get("http://linkspan/v1/events", params=wanted) as answer,
            ):
                if answer.status != 200:
                    raise LinkspanError(f"the agent does not tell its events: status {answer.status}")
                async for line in answer.content:
                    yield shown(msgspec.json.decode(line))
        except aiohttp.ClientConnectorError as error:  # in the words of other questions: the page shows either
            raise no_answer(self.path, error.os_error) from error
        except aiohttp.ClientPayloadError:
            pass  # it was killed in the midst of its stream
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable(f"agent at {self.path}: {str(error).lower()}") from error
        raise Unavailable(f"agent at {self.path} has ended")


async def _apart(ask: Callable[[], T]) -> T:
    """Return what ``ask`` returns, which runs in a thread of its own that nobody waits for at the process's end.

    asyncio's threads are few, and it waits for them at the end: an agent that hangs would hold both up for PATIENCE.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where the answer is awaited
            answer.set_exception(error)

    answer.set_running_or_notify_cancel()  # whoever goes away does not end it
    threading.Thread(target=run, name="question", daemon=True).start()
    return await asyncio.wrap_future(answer)


def _items(client: Client, url: str) -> list[Any]:
    found: list[Any] = []
    for part in client.parts(url):
        items = msgspec.json.decode(part)
        found += items if plain(part) else map(shown, items)  # nearly every part is plain
    return found
