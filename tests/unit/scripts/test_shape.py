"""scripts/shape.py: what it finds in a project that has lost its shape."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "shape.py"


@pytest.fixture
def shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the script, looking at an empty project."""
    spec = importlib.util.spec_from_file_location("shape", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "SOURCE", tmp_path / "src" / "linkspan")
    return module


@pytest.fixture
def complaints(shape: ModuleType) -> Callable[[str, str], list[str]]:
    """Give what it says of a project with this one file."""

    def of(name: str, text: str) -> list[str]:
        path = shape.ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return list(shape.complaints())

    return of


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("kernel/routes.py", "from linkspan.attach import Attach"),
        ("model.py", "import linkspan.kernel.netlink"),
        ("reconcile.py", "from linkspan import agent, state"),
        ("backends/bridge.py", "def f():\n    from linkspan.kernel import links"),
        ("tell/plan.py", "from linkspan.cli.main import main"),
        ("backends/bridge.py", "import socket"),
        ("backends/bridge.py", "from os import path"),
        ("backends/bridge.py", "x = open('/etc/hosts')"),
        ("agent.py", "from . import attach"),
        ("sundries.py", ""),
    ],
)
def test_finds_what_goes_upwards(complaints: Callable[[str, str], list[str]], name: str, line: str) -> None:
    """An import of a higher layer, I/O in a backend, a relative import, a module of no layer: one complaint each."""
    (complaint,) = complaints(f"src/linkspan/{name}", line)
    assert complaint.startswith(f"src/linkspan/{name}")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("attach.py", "from linkspan.kernel import links\nfrom linkspan import __version__, model"),
        ("kernel/routes.py", "import socket\nfrom linkspan.state import Route"),
        ("cli/main.py", "from linkspan.agent import Agent"),
        ("backends/bridge.py", "import hashlib\nfrom linkspan.state import Link"),
    ],
)
def test_lets_pass_what_goes_downwards(complaints: Callable[[str, str], list[str]], name: str, line: str) -> None:
    """Imports of the same layer and of those below are as they should be."""
    assert complaints(f"src/linkspan/{name}", line) == []


@pytest.mark.parametrize("suffix", ["py", "c"])
def test_finds_a_file_that_is_too_long(
    complaints: Callable[[str, str], list[str]], shape: ModuleType, suffix: str
) -> None:
    """A file of 700 lines passes; one line more is a complaint that names the file and the limit."""
    assert complaints(f"bench/long.{suffix}", "\n" * 700) == []
    (complaint,) = complaints(f"bench/long.{suffix}", "\n" * 701)
    assert complaint == f"bench/long.{suffix}: 701 lines, more than 700: split it along a noun"
    assert shape.lengths() == [(701, shape.ROOT / "bench" / f"long.{suffix}")]


def test_finds_test_files_of_one_name(complaints: Callable[[str, str], list[str]]) -> None:
    """Pytest refuses to import the second one, and a run without its folder would not notice."""
    assert complaints("tests/lab/test_it.py", "") == []
    (complaint,) = complaints("tests/unit/test_it.py", "")
    assert complaint == "tests/unit/test_it.py: named as tests/lab/test_it.py, and pytest imports one of them"


def test_finds_paths_of_a_machine(complaints: Callable[[str, str], list[str]], tmp_path: Path) -> None:
    """A path into the folder in which the checkout lies, or into somebody's home, is found by its line."""
    found = complaints("README.md", f"\nsee {tmp_path.parent}/other\nand /home/" + "jo/x\n")
    assert [complaint.split(":")[:2] for complaint in found] == [["README.md", "2"], ["README.md", "3"]]


def test_finds_a_module_that_the_page_does_not_name_and_one_that_is_gone(shape: ModuleType, tmp_path: Path) -> None:
    """In packages and beside them; a package may stand in a row of the others."""
    for name in ("agent.py", "fresh.py", "lab/__init__.py", "lab/build.py", "lab/late.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    table = "| top | `agent`, `lab`; `old` |\n| `lab/` | `build`, `gone` |\n"
    page = f"\n## Every module\n{table}\n## More\n| x | `fresh` |\n"
    assert [line.split()[1:3] for line in shape.unnamed(page, tmp_path)] == [
        ["fresh", "is"], ["old", "is"], ["lab/gone", "is"], ["lab/late", "is"],
    ]  # fmt: skip
