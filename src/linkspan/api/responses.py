"""Shared by the API's routes: JSON requests and JSON answers."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import web

from linkspan.core.errors import Invalid, LinkspanError, of_validation

T = TypeVar("T")


def answer(value: object, status: int = 200) -> web.Response:
    """Return a value as a JSON response."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def error_body(error: LinkspanError) -> dict[str, dict[str, str]]:
    """Return an error in the documented format."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


async def body(request: web.Request, type_: type[T]) -> T:
    """Parse a request's JSON. Raises Invalid, which says where the JSON is wrong."""
    try:
        return msgspec.json.decode(await request.read(), type=type_)
    except msgspec.ValidationError as error:
        raise of_validation(error, type_, hint="--help shows the allowed values") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the request is no JSON: {error}", "is the caller of another version?") from error
