"""The pages in docs/: every command that they show does what they say it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAYED = [page for page in sorted((ROOT / "docs").glob("*.md")) if "```console" in page.read_text(encoding="utf-8")]
"""The others have no command. Those of docs/zh have the commands of these (tests/unit/scripts/test_translations.py)."""


@pytest.mark.timeout(400)  # the longest page has several labs
@pytest.mark.parametrize("page", PLAYED, ids=lambda page: page.stem)
def test_commands_of_a_page_end_as_it_says(page: Path) -> None:
    """Typed in order on an empty host, each command works, and those that the page shows failing fail."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "docs.py", "--check", page], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
