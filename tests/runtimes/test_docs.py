"""The pages in docs/: every command that they show does what they say it does."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.polling import SHARED
from support.typed_commands import served

ROOT = Path(__file__).parents[2]
PLAYED = [page for page in sorted((ROOT / "docs").glob("*.md")) if "```console" in page.read_text(encoding="utf-8")]
"""The others have no command. Those of docs/zh have the commands of these (tests/unit/scripts/test_translations.py)."""
INSTEAD = 'mount --bind "$1" "$2"; shift 2; exec "$@"'


@pytest.fixture
def before() -> Iterator[list[str]]:
    """Give the words before a program for which `linkspan` need not start really: beside other tests it is a copy."""
    if SHARED == 1:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="lkp") as folder, served(Path(folder)) as program:
        private = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", INSTEAD, "sh"]
        yield [*private, str(program), str(Path(sys.executable).with_name("linkspan"))]


@pytest.mark.timeout(400)  # the longest page has several labs
@pytest.mark.parametrize("page", PLAYED, ids=lambda page: page.stem)
def test_commands_of_a_page_end_as_it_says(page: Path, before: list[str]) -> None:
    """Typed in order on an empty host, each command works, and those that the page shows failing fail."""
    argv = [*before, sys.executable, str(ROOT / "scripts" / "docs.py"), "--check", str(page)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
