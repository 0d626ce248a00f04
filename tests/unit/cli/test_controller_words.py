"""Output of `linkspan controller status`: parts separated by one line, columns under their heads."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from linkspan.cli import controller


def _status(**more: Any) -> dict[str, Any]:
    """Return what a controller tells with a switch, a host and a prefix."""
    switch = {"name": "sw1", "address": "unix:/x", "state": "ok", "ports": 3, "ports_up": 3, "flows": 26, "healed": 0}
    return {
        "controller": "ctl1", "active": True, "leader": "ctl1", "store": {"url": "sqlite:///x", "problem": ""},
        "switches": [switch | {"problem": ""}], "routers": [], "links": [],
        "hosts": [{"host": "h1", "mac": "02:00:00:00:00:01", "switch": "sw1", "port": "h1", "problem": ""}],
        "prefixes": [{"prefix": "10.244.1.0/24", "network": "demo", "host": "h1",
                      "sent": {"packets": 7}, "received": {"packets": 12345}}],
        "dropped": [], "problems": [], "heals": [], **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"problems": ["one is broken", "another too"]},
        {"hosts": [], "prefixes": [], "switches": []},
        {"dropped": [{"packets": 3, "switch": "sw1", "kind": "foreign", "what": "drops it"}]},
    ],
)
def test_parts_are_one_line_apart(capsys: pytest.CaptureFixture[str], more: dict[str, Any]) -> None:
    """None begins or ends with an empty line, and the problems stand together."""
    controller._show(_status(**more))
    printed = capsys.readouterr().out
    assert printed == printed.strip("\n") + "\n"
    assert "\n\n\n" not in printed
    wrong = "\n".join(f"problem: {text}" for text in more.get("problems", ()))
    assert wrong in printed


def test_columns_stand_under_their_heads(capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever is longer, the head or a value."""
    controller._show(_status())
    for part in capsys.readouterr().out.split("\n\n")[1:]:
        head, *rows = part.splitlines()
        starts = [n for n in range(len(head)) if head[n] != " " and head[max(n - 2, 0) : n].strip(" ") == ""]
        for row in rows:
            assert all(n == 0 or row[n - 1] == " " for n in starts), part
            assert all(row[n] != " " for n in starts), part


FLOW = {
    "switch": "sw1", "table": 0, "priority": 7, "match": ["ip"], "actions": "drop", "packets": 3, "ours": True,
    "what": "drops it",
}  # fmt: skip
PLANNED = {"device": "sw1", "command": "ovs-ofctl add-flow", "why": "drops it", "present": True}


@pytest.mark.parametrize("command", ["flows", "plan"])
@pytest.mark.parametrize("output", ["table", "json"])
def test_a_switch_that_does_not_answer_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, command: str, output: str
) -> None:
    """The others' are reported, it is named with the reason on stderr, and the command exits 3."""
    found: dict[str, list[dict[str, Any]]] = {command: [{"flows": FLOW, "plan": PLANNED}[command]], "unknown": []}
    monkeypatch.setattr(controller, "_call", lambda socket, url: found)
    words = [command, "--output", output]
    well = CliRunner().invoke(controller.app, words)
    assert (well.exit_code, well.stderr) == (0, "")
    found["unknown"] = [{"device": "sw2", "problem": "switch sw2 at unix:/x does not answer"}]
    told = CliRunner().invoke(controller.app, words)
    assert (told.exit_code, told.stdout) == (3, well.stdout)
    assert told.stderr == "not known: sw2: switch sw2 at unix:/x does not answer\n"
    assert "sw1" in told.stdout
