"""docs/settings.md tells the truth about the agent's settings."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import msgspec

from linkspan import config
from linkspan.cli.agent import agent

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
_ROW = re.compile(r"^\| `(\w+)` \| `(.*?)` \| (?:`--([\w-]+)`)? ?\|", re.MULTILINE)


def test_every_setting_is_there_with_its_default() -> None:
    """The table has the keys and values of `agent --print-config`, in its order."""
    told = "".join(f"{key} = {default}\n" for key, default, _ in _ROW.findall(PAGE.read_text(encoding="utf-8")))
    assert told == config.as_toml(config.Config())


def test_every_option_of_a_setting_is_there() -> None:
    """A key's option is the one that the command has for it, and one without has none."""
    options = {option for _, _, option in _ROW.findall(PAGE.read_text(encoding="utf-8")) if option}
    wanted = {name.replace("_", "-") for name in inspect.signature(agent).parameters}
    keys = {name.replace("_", "-") for name in msgspec.structs.asdict(config.Config())}
    assert options == keys & wanted
