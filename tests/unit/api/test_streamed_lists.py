"""A list that is sent as it comes is the same JSON as any other, and one that breaks off is no list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from linkspan.api import client, responses
from linkspan.api.client import Client
from linkspan.api.middleware import errors_and_rights
from linkspan.api.responses import answer, streamed
from linkspan.cli.output import as_json, as_json_list
from linkspan.core.errors import Unavailable

AWAY = Unavailable("the store is away", "wait")


def _called(path: str) -> object:
    """Return what a client gets that takes the answer as a whole."""
    return Client(path).call("GET", "/v1/list")


def _items(path: str) -> object:
    """Return what a client gets that takes items as they come."""
    return list(Client(path).items("/v1/list"))


WAYS = pytest.mark.parametrize("ask", [_called, _items])


async def _asked(
    path: Path, parts: Sequence[Sequence[object] | Unavailable], ask: Callable[[str], object], *, old: bool = False
) -> object:
    """Return what a client gets for these parts of a list; an ``old`` agent sends them at once."""

    async def told() -> AsyncIterator[Sequence[object]]:
        for part in parts:
            if isinstance(part, Unavailable):
                raise part
            yield part

    async def list_(request: web.Request) -> web.StreamResponse:
        return answer([one async for part in told() for one in part]) if old else await streamed(request, told())

    app = web.Application(middlewares=[errors_and_rights])
    app.add_routes([web.get("/v1/list", list_)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        return await asyncio.to_thread(ask, str(path))
    finally:
        await runner.cleanup()


@WAYS
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("at_once", [1, 30, 1 << 18])
@pytest.mark.parametrize(
    "parts", [[], [[]], [[], ["a" * 40]], [["a"], [], ["b", "c"], []], [[{"x": n}] for n in range(50)]]
)
def test_a_list_is_whole_however_it_is_sent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: list[list[object]],
    at_once: int,
    old: bool,
    ask: Callable[[str], object],
) -> None:
    """By as many writes as it takes, and as it is read."""
    monkeypatch.setattr(responses, "AT_ONCE", at_once)
    monkeypatch.setattr(client, "AT_ONCE", at_once + 1)
    assert asyncio.run(_asked(tmp_path / "socket", parts, ask, old=old)) == [one for part in parts for one in part]


@WAYS
def test_an_error_before_anything_is_sent_is_told(tmp_path: Path, ask: Callable[[str], object]) -> None:
    """With its hint, as any error."""
    with pytest.raises(Unavailable, match="the store is away"):
        asyncio.run(_asked(tmp_path / "socket", [["a"], AWAY], ask))


@WAYS
def test_an_error_later_leaves_no_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], object]
) -> None:
    """A part of the endpoints must not pass for all of them."""
    monkeypatch.setattr(responses, "AT_ONCE", 4)
    with pytest.raises(Unavailable, match="ended during the request"):
        asyncio.run(_asked(tmp_path / "socket", [["aaaa"], ["bbbb"], AWAY], ask))


@pytest.mark.parametrize(
    "values", [[], [{"a": 1}], [{"a": "x\u200by\n\u009b", "b": [], "c": {}}, {"d": [1, {"e": 2}]}], [[], [1]], ["x", 1]]
)
def test_a_list_is_printed_as_it_comes_and_looks_like_any_other(
    values: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same indent, and every control character as JSON writes it."""
    as_json(values)
    whole = capsys.readouterr().out
    for at_once in (1, 2, 3):
        parts = (values[start : start + at_once] for start in range(0, len(values), at_once))
        as_json_list(msgspec.json.encode(part).decode() for part in parts)
        found = capsys.readouterr().out
        assert found == whole
    assert msgspec.json.decode(found) == values
    assert "\u009b" not in found
