"""Control characters in names that others chose: shown as text, wherever text leaves."""

from __future__ import annotations

import json
import logging
import sys

import msgspec
import pytest

from linkspan.api import client
from linkspan.api.client import Client
from linkspan.cli import output
from linkspan.core.errors import Invalid
from linkspan.core.escapes import escaped, plain, shown
from linkspan.core.process import _Lines

FORGED = "h9\x1b[31m\nh1    alive\r\x9b2J\u202e"
SHOWN = r"h9\u001b[31m\u000ah1    alive\u000d\u009b2J\u202e"


def test_what_moves_a_terminal_or_forges_a_line_is_shown_as_text() -> None:
    """C0 and C1, line ends, and what turns text round; letters of all scripts stay."""
    assert escaped(FORGED) == SHOWN
    assert escaped("Zürich 東京 \U0001f600") == "Zürich 東京 \U0001f600"
    assert json.loads(f'"{SHOWN}"') == FORGED, "and JSON reads it back"


def test_all_of_an_answer_is_shown_so_but_the_lines_of_a_command() -> None:
    """At every depth, keys too; what `plan` prints to be typed keeps its lines."""
    answer = {"hosts": [{"name": FORGED}], FORGED: 1, "command": "a\n\x1bb"}
    assert shown(answer) == {"hosts": [{"name": SHOWN}], SHOWN: 1, "command": "a\n\\u001bb"}


def test_only_json_in_which_nothing_is_escaped_is_plain() -> None:
    """However the JSON writes a character: by itself, or as an escape."""
    for number in (*range(0x300), 0x200B, 0x202E, 0x2060, 0xFEFF, 0xD800):
        value = [f"a{chr(number)}b"]
        if plain(json.dumps(value)) or plain(json.dumps(value, ensure_ascii=False)):
            assert shown(value) == value, number
    assert plain('[{"name":"web","addresses":["10.244.1.2/24"]}]')


def test_the_command_line_shows_answers_and_errors_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """All text from an agent passes one place, errors included."""
    monkeypatch.setattr(Client, "shown", staticmethod(shown))
    told = msgspec.json.encode({"error": {"code": "invalid", "message": FORGED, "hint": ""}})
    error = client._error(told, 400)
    assert isinstance(error, Invalid)
    assert error.message == SHOWN


def test_json_keeps_values_and_shows_them_so(capsys: pytest.CaptureFixture[str]) -> None:
    """A script reads the name as it is; the terminal sees no control character."""
    output.as_json({"name": FORGED})
    said = capsys.readouterr().out
    assert not {"\x1b", "\x9b", "\r", "\u202e"} & set(said)
    assert json.loads(said) == {"name": FORGED}


def test_a_table_takes_a_name_for_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal too, where tables are drawn."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.table(("name",), [("[red]a[/] [/nothing] :smile:",)], "")
    assert "[red]a[/] [/nothing] :smile:" in capsys.readouterr().out


def test_a_log_line_is_one_line_without_control_characters() -> None:
    """A record's key or reason may have any character."""
    made = logging.LogRecord("linkspan", logging.WARNING, "", 0, "record %s", (FORGED,), None)
    line = _Lines().format(made)
    assert not {"\x1b", "\x9b", "\n", "\r", "\u202e"} & set(line)
    assert json.loads(line)["message"] == f"record {FORGED}"
