"""The settings file: the agent changes one setting in it, and leaves the rest."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from linkspan.agent.settings_file import drop_store, keep_store
from linkspan.core.config import load
from linkspan.core.errors import Invalid, Unavailable

URL = "etcd://192.0.2.1:5379/linkspan?user=host-a\\b&password-file=/p"


@pytest.mark.parametrize(
    "before",
    ["", "# mine\nunderlay = 'eth0'", "store = ''\ncooldown = 5\n", '  store="sqlite:///x"  # old\nnames = false\n'],
)
def test_the_store_is_kept_and_dropped_again(tmp_path: Path, before: str) -> None:
    """Comments and other settings stay; a file that has nothing else goes."""
    file = tmp_path / "etc" / "agent.toml"
    if before:
        file.parent.mkdir()
        file.write_text(before)
        file.chmod(0o600)
    keep_store(file, URL)
    keep_store(file, URL)
    text = file.read_text()
    assert text.count("store =") == 1
    assert load(str(file), {}).store == URL
    assert file.stat().st_mode & 0o777 == (0o600 if before else 0o644)
    drop_store(file, lambda url: url == "etcd://other")
    assert file.read_text() == text
    drop_store(file, URL.__eq__)
    drop_store(file, URL.__eq__)
    kept = [line for line in before.splitlines() if "store" not in line]
    assert (file.read_text().splitlines() if kept else not file.exists()) == (kept or True)


def test_a_file_that_cannot_be_changed_is_an_error_with_the_line(tmp_path: Path) -> None:
    """The operator writes the line, and nothing is lost."""
    file = tmp_path / "agent.toml"
    file.write_text('store = """\netcd://x\n"""\n')
    with pytest.raises(Invalid, match="config file"):
        keep_store(file, URL)
    assert file.read_text() == 'store = """\netcd://x\n"""\n'
    with pytest.raises(Unavailable):
        keep_store(tmp_path / "agent.toml" / "below", URL)


def test_a_link_stays_one_and_a_store_of_a_table_stays_as_it_is(tmp_path: Path) -> None:
    """The setting is that before the first table."""
    real, link = tmp_path / "real.toml", tmp_path / "agent.toml"
    real.write_text("cooldown = 5\n\n[other]\nstore = 'mine'\n")
    link.symlink_to(real)
    keep_store(link, URL)
    found = tomllib.loads(real.read_text())
    assert link.is_symlink()
    assert (found["store"], found["other"]["store"]) == (URL, "mine")
    drop_store(link, URL.__eq__)
    assert link.is_symlink()
    assert tomllib.loads(real.read_text()) == {"cooldown": 5, "other": {"store": "mine"}}
