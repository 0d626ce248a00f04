"""Shared by the API's routes: JSON requests and JSON answers."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec
from aiohttp import web

from linkspan.api import WARNINGS
from linkspan.core.errors import Invalid, LinkspanError, Unavailable, of_validation

log = logging.getLogger("linkspan.api.responses")

T = TypeVar("T")

_ENCODER = msgspec.json.Encoder()

AT_ONCE = 1 << 18
"""Bytes of an answer that wait for more."""


def answer(value: object, status: int = 200, warnings: Iterable[str] = ()) -> web.Response:
    """Return a value as a JSON response; ``warnings`` are in a header, for answers that have no place for them."""
    headers = {WARNINGS: json.dumps(told)} if (told := list(warnings)) else None  # in ASCII, as headers need it
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", headers=headers
    )


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Name the operation that failed because the store is away or full: the store's error names the store alone."""
    try:
        yield
    except Unavailable as error:
        raise error.within(what) from error


async def streamed(request: web.Request, parts: AsyncIterator[Sequence[object]]) -> web.StreamResponse:
    """Return the items of all parts as one JSON list, an item on a line, which is sent as it comes.

    Raises what the first AT_ONCE bytes raise. At an error later on, the connection is broken off.
    """
    begun: web.StreamResponse | None = None
    waiting, between = b"[\n", b""
    try:
        async for items in parts:
            if items:
                waiting += between + b",\n".join(map(_ENCODER.encode, items))
                between = b",\n"
            if len(waiting) < AT_ONCE:
                continue
            if begun is None:
                begun = web.StreamResponse(headers={"Content-Type": "application/json"})
                await begun.prepare(request)
            await begun.write(waiting)
            waiting = b""
    except LinkspanError as error:
        if begun is None:
            raise
        log.warning("%s %s is broken off: %s", request.method, request.path, error.message)
        if request.transport is not None:
            request.transport.abort()
        return begun
    if begun is None:
        return web.Response(body=waiting + b"\n]", content_type="application/json")
    await begun.write_eof(waiting + b"\n]")
    return begun


def error_body(error: LinkspanError) -> dict[str, dict[str, str]]:
    """Return an error in the documented format."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


async def body(request: web.Request, type_: type[T], largest: int = 0) -> T:
    """Parse a request's JSON, of as many bytes as all requests may have, or ``largest``.

    Raises Invalid, which says where the JSON is wrong.
    """
    if largest:
        request = request.clone(client_max_size=largest)
    try:
        return msgspec.json.decode(await request.read(), type=type_)
    except msgspec.ValidationError as error:
        raise of_validation(error, type_, hint="--help shows the allowed values") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the request is no JSON: {error}", "is the caller of another version?") from error
