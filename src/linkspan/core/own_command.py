"""linkspan's own modules as processes of the same interpreter, from any folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def own_command(module: str = "linkspan.cli.main") -> list[str]:
    """Return the words that run a module of linkspan's, by default the command line.

    With -m alone, Python looks for modules in the current folder first. That may be anybody's: `sudo linkspan` in
    /tmp would run another user's files as root. With -P it does not look there.
    """
    return [sys.executable, "-P", "-m", module]


def own_environment() -> dict[str, str]:
    """Return this process's environment, in which a PYTHONPATH names the same folders from anywhere."""
    given = dict(os.environ)
    if "PYTHONPATH" in given:
        parts = given["PYTHONPATH"].split(os.pathsep)
        given["PYTHONPATH"] = os.pathsep.join(str(Path(part).absolute()) for part in parts if part)
    return given
