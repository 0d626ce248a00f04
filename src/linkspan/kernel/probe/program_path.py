"""Program path: where a helper program is installed."""

from __future__ import annotations

import os
import shutil


def located(name: str) -> str | None:
    """Return the path of a program, None if it is not installed: a user's PATH may lack the daemons' folder."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
