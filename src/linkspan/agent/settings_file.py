"""Settings file of the agent: the one setting that the agent itself changes in it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec

from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.remedies import reason
from linkspan.kernel.io.durable_files import write

_STORE = re.compile(r"(?m)^[ \t]*store[ \t]*=.*$\n?")
_TABLE = re.compile(r"(?m)^[ \t]*\[")
"""Where the first table begins: a `store` in it, or after it, is another setting."""


def _parts(text: str) -> tuple[str, str]:
    """Return a file's own settings, and its tables."""
    begin = match.start() if (match := _TABLE.search(text)) else len(text)
    return text[:begin], text[begin:]


def drop_store(file: Path, ours: Callable[[str], bool]) -> None:
    """Take the setting ``store`` out of a settings file if its URL is ``ours``; remove a file without any other.

    Raises Unavailable.
    """
    try:
        file = Path(os.path.realpath(file))  # a link stays one
        text = file.read_text(encoding="utf-8")
        if ours(str(tomllib.loads(text).get("store", ""))):
            head, tables = _parts(text)
            rest = _STORE.sub("", head) + tables
            write(file, rest.encode(), file.stat().st_mode & 0o777) if rest.strip() else file.unlink()
    except FileNotFoundError:
        return
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise Unavailable(f"config file {file}: {why}", "take the line `store = ...` out of it") from error


def keep_store(file: Path, url: str) -> None:
    """Write the setting ``store`` into a settings file, and leave the rest as it is. Raises Unavailable or Invalid."""
    line = f"store = {msgspec.json.encode(url).decode()}"
    hint = f"write this line into {file}, and start the agent again: {line}"
    try:
        file = Path(os.path.realpath(file))  # a link stays one
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        head, tables = _parts(text)
        head, count = _STORE.subn(lambda _: f"{line}\n", head)
        if not count:
            head = f"{head}{'' if head.endswith(chr(10)) or not head else chr(10)}{line}\n"
        changed = head + tables
        if tomllib.loads(changed).get("store") != url:
            raise Invalid(f"config file {file}: its setting `store` cannot be found", hint)
        if changed != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file, changed.encode(), file.stat().st_mode & 0o777 if file.exists() else 0o644)
    except OSError as error:
        raise Unavailable(f"config file {file}: {reason(error)}", hint) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"config file {file}: it cannot be read any more ({error})", hint) from error
