"""Kinds known on a host: those of linkspan's drivers, and those of installed packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from linkspan.kernel import kinds

CABLE = """
from linkspan.core.kinds import Kind
from linkspan.core.states.host import State

class Cable(State, frozen=True, gc=False):
    name: str

KINDS = (Kind(state=Cable, rank=1, known_by="its name", purpose="a cable", names=({name!r},)),)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Give a function that installs a package with one module and an entry point for its kinds."""

    def install(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[linkspan.kinds]\n{name} = {name}:KINDS\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    kinds._found.cache_clear()
    yield install
    kinds._found.cache_clear()


def test_kinds_of_installed_packages_are_known(installed: Callable[[str, str], None]) -> None:
    """Beside linkspan's own, only by their entry point."""
    installed("lsx_cables", CABLE.format(name="lscab*"))
    assert "Cable" in [kind.name for kind in kinds.kinds()]
    assert "Bridge" in [kind.name for kind in kinds.kinds()]
    assert kinds.problems() == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import lsx_nowhere", "No module named 'lsx_nowhere'"),
        (CABLE.format(name="lsx*"), "kind Cable calls its links lsx*, and kind Vxlan calls its links lsx*"),
        (CABLE.format(name="cab*"), "kind Cable calls its links cab*, and names of links begin with ls"),
        ("KINDS = (7,)", "its entry point leads to 7, which is no Kind"),
    ],
)
def test_a_package_whose_kinds_are_of_no_use_is_left_out_and_named(
    installed: Callable[[str, str], None], text: str, why: str
) -> None:
    """Everything else works."""
    installed(f"lsx_broken{abs(hash(text))}", text)
    assert "Cable" not in [kind.name for kind in kinds.kinds()]
    assert "Bridge" in [kind.name for kind in kinds.kinds()]
    (problem,) = kinds.problems()
    assert problem.startswith("the kinds of package lsx_broken")
    assert problem.endswith(f"are left out: {why}")
