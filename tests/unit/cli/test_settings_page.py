"""docs/settings.md tells the truth about the settings of agent and controller."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from linkspan.cli.agent import agent
from linkspan.cli.controller import controller
from linkspan.controller import settings
from linkspan.core import config

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| `(\w+)` \| `(.*?)` \| (?:`--([\w-]+)`)? ?\|", re.MULTILINE)
_INNER = {
    *("LINKSPAN_AGENT_SETTINGS", "LINKSPAN_CONTROLLER_SETTINGS", "LINKSPAN_PROCESS", "LINKSPAN_BOOT_ID"),
    *("LINKSPAN_LAB_MARK", "LINKSPAN_LAB_KEEPER", "LINKSPAN_NETNS_FD", "LINKSPAN_NETNS_ERROR", "LINKSPAN_SELF_NETNS"),
    *("LINKSPAN_STATE", "LINKSPAN_AGENT_FILE", "LINKSPAN_UPGRADE"),
    *("LINKSPAN_LEARN_SANDBOX", "LINKSPAN_LEARN_INSIDE"),
}
"""Set by linkspan for its own processes, and by no user."""
KINDS: list[tuple[str, type[msgspec.Struct], Callable[..., None]]] = [
    ("## An agent", config.Config, agent),
    ("## A controller", settings.Settings, controller),
]


def _rows(heading: str) -> list[tuple[str, str, str]]:
    section = PAGE.partition(f"{heading}\n")[2].partition("\n## ")[0]
    return [(key, default, option) for key, default, option in _ROW.findall(section)]


@pytest.mark.parametrize(("heading", "kind", "command"), KINDS)
def test_every_setting_is_there_with_its_default(
    heading: str, kind: type[msgspec.Struct], command: Callable[..., None]
) -> None:
    """The table has the keys and values of `--print-config`, in its order; the tables are named."""
    printed, *tables = re.split(r"^\[(\w+)\]\n", config.as_toml(config.shown(kind, {})), flags=re.MULTILINE)
    told = "".join(f"{key} = {default}\n" for key, default, _ in _rows(heading))
    assert told.strip() == printed.strip()
    assert all(f"| `[{table}]` |" in PAGE for table in tables[::2])


@pytest.mark.parametrize(("heading", "kind", "command"), KINDS)
def test_every_option_of_a_setting_is_there(
    heading: str, kind: type[msgspec.Struct], command: Callable[..., None]
) -> None:
    """A key's option is the one that the command has for it, and one without has none."""
    options = {option for _, _, option in _rows(heading) if option}
    wanted = {name.replace("_", "-") for name in inspect.signature(command).parameters}
    keys = {name.replace("_", "-") for name in msgspec.structs.asdict(kind())}
    assert options == keys & wanted


def test_every_variable_is_there() -> None:
    """Of those that any process of linkspan reads, but for what it sets itself."""
    sources = [*(ROOT / "src" / "linkspan").rglob("*.py"), *(ROOT / "src" / "linkspan").rglob("*.c")]
    read = {
        name
        for path in sources
        for name in re.findall(r'"(LINKSPAN_[A-Z_]+)"', path.read_text(encoding="utf-8"))
    }
    assert {name for name in read - _INNER if f"`{name}`" not in PAGE} == set()
