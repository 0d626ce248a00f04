"""Process of a daemon: logs JSON lines to stderr, and ends with one line and exit code 1 after an error of ours."""

from __future__ import annotations

import asyncio
import datetime
import logging
import sys
from asyncio import selector_events, sslproto
from collections.abc import Coroutine
from typing import Any

import msgspec

from linkspan.core.errors import LinkspanError
from linkspan.core.escapes import escaped

READ = 48 << 10
"""Bytes that asyncio reads from a connection at once. Each of its own 256 KiB is a mapping that glibc makes and removes
for each read (core/config.py): 20 microseconds instead of 2. Each TLS connection also keeps a buffer of this size."""


class _Lines(logging.Formatter):
    """Formats a log entry as one JSON object per line: time, level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {
            "at": at,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return escaped(msgspec.json.encode(line).decode())


def served(work: Coroutine[Any, Any, None], level: str) -> None:
    """Run a daemon, with a log of JSON lines; an error that ends it is one line, with exit code 1."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    sslproto.SSLProtocol.max_size = READ
    selector_events._SelectorTransport.max_size = READ  # type: ignore[attr-defined] # noqa: SLF001 - no other way
    try:
        asyncio.run(work)
    except LinkspanError as error:
        print(f"linkspan: {escaped(error.told)}", file=sys.stderr)
        sys.exit(1)
