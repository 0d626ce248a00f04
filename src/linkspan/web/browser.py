"""The user's browser: opened by a file that leads to the link, so that no token is in a command line."""

from __future__ import annotations

import contextlib
import html
import os
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Mapping
from pathlib import Path


def can_open(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether there is a screen for a browser, and a user who may use it: browsers refuse to run as root."""
    return bool(os.geteuid()) and any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


@contextlib.contextmanager
def leading_to(link: str) -> Iterator[Path]:
    """Give a file that leads a browser to a link; only this user can read it, and it goes with the block.

    It is in the home, because a browser that is a snap sees neither the machine's /tmp nor hidden folders.
    """
    home = Path("~").expanduser()
    folder = home if os.access(home, os.W_OK) else None
    descriptor, name = tempfile.mkstemp(prefix="linkspan-", suffix=".html", dir=folder)  # mode 0600
    path = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            target = html.escape(link, quote=True)
            file.write(f'<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
                f'<meta http-equiv="refresh" content="0; url={target}"><a href="{target}">linkspan</a>\n')  # fmt: skip
        yield path
    finally:
        path.unlink(missing_ok=True)


def open_file(path: Path) -> None:
    """Open a file in the user's browser, if there is one.

    Nobody waits for it: a browser that BROWSER names may run in the foreground until the user closes it.
    """

    def run() -> None:
        with contextlib.suppress(webbrowser.Error, OSError):
            webbrowser.open(path.as_uri())

    threading.Thread(target=run, name="browser", daemon=True).start()
