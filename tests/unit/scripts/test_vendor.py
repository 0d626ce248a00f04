"""Libraries of the page: the checkout has what vendor.json says, and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the script."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import vendor as module

    return module


def test_every_vendored_file_has_the_hash_that_is_written_down(vendor: ModuleType) -> None:
    """A change by hand would be found here, and npm's own file by scripts/vendor.py in CI."""
    assert vendor.spoilt(vendor.FOLDER, vendor.listed()) == []


def test_a_changed_or_missing_file_is_found(vendor: ModuleType, tmp_path: Path) -> None:
    """By its name."""
    for path in vendor.FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "htm.js").write_text("alert(1)")
    (tmp_path / "preact.js").unlink()
    assert sorted(vendor.spoilt(tmp_path, vendor.listed())) == ["htm.js", "preact.js"]


def test_every_package_has_a_version_a_licence_and_its_text(vendor: ModuleType) -> None:
    """And no file lies there that the list does not name."""
    packages = {name: one for name, one in vendor.listed().items() if not one.get("test")}
    for name, package in packages.items():
        assert package["version"]
        assert package["license"] in ("MIT", "Apache-2.0")
        assert f"{name}.LICENSE" in package["files"]
    named = {file for package in packages.values() for file in package["files"]}
    assert {path.name for path in vendor.FOLDER.iterdir()} == {*named, "vendor.json"}
