"""HTTP servers of linkspan: what all of them refuse to do for strangers."""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError


def runner(application: web.Application, **more: Any) -> web.AppRunner:
    """Return a runner of an application; ``more`` are further settings of aiohttp's runner.

    Bodies of requests stay as they came. aiohttp unpacks compressed ones in the event loop, even those that nobody
    reads: 300 kB of gzip are 300 MB, and all others wait for seconds. No client of ours compresses a request.
    """
    return web.AppRunner(application, access_log=None, auto_decompress=False, logger=_http_log(), **more)


class _Unreadable(logging.Filter):
    """Drops the traceback that aiohttp logs for each request that it cannot read: anybody may send them."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is of anything else, such as a defect of ours."""
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (HttpProcessingError, web.RequestPayloadError, ConnectionError))


def _http_log() -> logging.Logger:
    """Return the logger of aiohttp's server."""
    found = logging.getLogger("linkspan.core.http_server")
    if not found.filters:
        found.addFilter(_Unreadable())
    return found
