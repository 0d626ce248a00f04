"""What the state means to the page (`model.js`), in Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from linkspan.web.files import FOLDER

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="no Node: apt-get install nodejs")


def evaluated(folder: Path, expression: str) -> Any:
    """Return the value of an expression in which `model` is the module."""
    (folder / "model.mjs").write_bytes((FOLDER / "model.js").read_bytes())
    program = f'import * as model from "./model.mjs"; console.log(JSON.stringify({expression}));'
    (folder / "asks.mjs").write_text(program, encoding="utf-8")
    done = subprocess.run(["node", folder / "asks.mjs"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def changes(folder: Path, *states: str) -> list[str]:
    """Return what `changesOf` says of a cluster whose one BGP session has each of these states."""
    problem = {"host": "", "network": "", "why": "BGP session with tor is down"}
    seen = [
        {
            "about": {"away": ""}, "hosts": {"id-h1": {"state": "alive"}},
            "problems": {} if state == "established" else {"000": problem},
            "routers": {"tor": {"peer": "tor", "state": state}},
        }
        for state in states
    ]  # fmt: skip
    found: list[str] = evaluated(folder, f"{json.dumps(seen)}.map(model.changesOf)")
    return found


def test_a_session_that_tries_again_is_no_change(tmp_path: Path) -> None:
    """What a real packet met stays as long as the session is down; it gives way when the session is up."""
    up, *down = changes(tmp_path, "established", "active", "connect", "opensent", "idle")
    assert len(set(down)) == 1
    assert up not in down


def test_problems_are_in_the_pages_language(tmp_path: Path) -> None:
    """Those that the server has in it."""
    problems = {"000": {"why": "no answer", "said": {"zh": "没有应答"}}, "001": {"why": "new", "said": {}}}
    call = f"Object.values(model.problemsIn({json.dumps(problems)}, 'zh')).map((one) => one.why)"
    assert evaluated(tmp_path, call) == ["没有应答", "new"]


@pytest.mark.parametrize(("first", "second"), [("h1", "h2"), ("h1", "h01"), ("h1", "H1"), ("h10", "h9")])
def test_a_link_has_one_name_in_either_direction(tmp_path: Path, first: str, second: str) -> None:
    """Also between hosts whose names people would sort as the same."""
    there, back = evaluated(tmp_path, f"[model.linkRef('{first}', '{second}'), model.linkRef('{second}', '{first}')]")
    assert there == back
