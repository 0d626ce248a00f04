"""Wrong usage is reported in our words, with what was probably meant; help reads as it does everywhere else."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import typer

from linkspan.cli import main, output, usage

ALL = main.commands()


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run the command line in this process; return its exit code and what it printed."""
    monkeypatch.setattr("sys.argv", ["linkspan", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


MEANT = [
    ("network rm demo", "did you mean `linkspan network delete`?"),
    ("network remove demo", "did you mean `linkspan network delete`?"),
    ("network inspect demo", "did you mean `linkspan network show`?"),
    ("network ls", "did you mean `linkspan network list`?"),
    ("network connect demo web", "did you mean `linkspan attach`?"),
    ("endpoint rm web", "did you mean `linkspan detach`?"),
    ("host rm h3", "did you mean `linkspan host remove`?"),
    ("host cordon h3", "did you mean `linkspan host drain`?"),
    ("lab stop", "did you mean `linkspan lab down`?"),
    ("inspect web", "did you mean `linkspan endpoint show`?"),
    ("ps", "did you mean `linkspan endpoint list`?"),
    ("logs", "did you mean `linkspan events`?"),
    ("ping a b", "did you mean `linkspan trace`?"),
    ("statsu", "did you mean `linkspan status`?"),
    ("help", "write `linkspan --help`"),
    ("help network create", "write `linkspan network create --help`"),
    ("drain h3", "did you mean `linkspan host drain`?"),
    ("frobnicate", "`linkspan --help` shows the commands"),
    ("network create demo --subnet 10.0.0.0/8", "did you mean `--pool`?"),
    ("network create demo --driver vxlan", "did you mean `--backend`?"),
    ("trace a b --tcp 80", "did you mean `--port 80/tcp`?"),
    ("trace a b --udp=53", "did you mean `--port 53/udp`?"),
    ("attach web --network demo -p 80:80", "did you mean `--publish`?"),
    ("attach web --netwrok demo", "did you mean `--network`?"),
    ("status --json", "did you mean `--output json`?"),
    ("events --tail 3", "did you mean `--last`?"),
    # Without root a lab makes a user namespace before it reads its options.
    pytest.param("lab up --nodes 3", "did you mean `--hosts`?", marks=pytest.mark.root),
    ("agent --frobnicate", "`linkspan agent --help` shows the options and arguments"),
    ("network show", "NAME is missing; write `linkspan network show NAME`"),
    ("attach web", "--network is missing; write `linkspan attach TARGET --network N`"),
    ("network show a b", "'b' is one argument too many; write `linkspan network show NAME`"),
    ("attach web --network", "option --network needs a value"),
    ("network create demo --mtu many", "--mtu: 'many' is not a whole number"),
    ("cluster set --reclaim-after soon", "--reclaim-after: 'soon' is not a number; give seconds"),
    ("cluster set --reclaim-after 1s", "--reclaim-after: '1s' is not a number; give seconds"),
    ("status -o xml", "'xml' is not one of 'table', 'json'"),
    ("events -n -3", "--last: -3 is less than 0"),
    ("learn hint 9", "N: 9 is not from 0 to 3"),
    ("learn hint x", "N: 'x' is not a whole number"),
    ("events --since yesterday", "--since: 'yesterday' is no time; write 10m, 2h, 3d, 20:15 or 2026-01-31 20:15"),
    ("detach", "give TARGET or --id ID"),
]


@pytest.mark.parametrize(("words", "meant"), MEANT)
def test_wrong_usage_is_one_line_that_says_what_was_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, meant: str
) -> None:
    """Exit code 2, nothing on stdout, and no message of the parsing libraries."""
    code, out, err = said(monkeypatch, capsys, *words.split())
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("linkspan: ")
    assert meant in err
    for foreign in ("No such", "Input should", "Value error", "Invalid value", "Try '"):
        assert foreign not in err


def test_what_is_suggested_exists() -> None:
    """Every command and option of the tables of other programs' words."""
    groups = {"linkspan": ALL} | {f"linkspan {name}": one for name, one in ALL.commands.items()}
    names = {name for one in groups.values() for name in getattr(one, "commands", {})}
    options = {opt for one in _commands(ALL) for param in one.params for opt in param.opts}
    for path, phrases in usage.PHRASES.items():
        assert path in groups
        for phrase in phrases.values():
            found: Any = ALL
            for word in phrase.split():
                found = found.commands[word]
    assert {verb for verbs in usage.VERBS.values() for verb in verbs} <= names
    assert {option for meant in usage.OPTIONS.values() for option in meant} <= options


def test_wrong_usage_is_an_object_for_scripts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With -o json, and only before a --: options after it are another program's."""
    code, out, err = said(monkeypatch, capsys, "network", "rm", "demo", "-o", "json")
    error = json.loads(out)["error"]
    assert (code, error["code"]) == (2, "usage")
    assert err == f"linkspan: {error['message']}; {error['hint']}\n"
    _, out, _ = said(monkeypatch, capsys, "lab", "exce", "c1", "--", "ip", "-o", "json")
    assert out == ""


def _commands(command: Any) -> list[Any]:
    return [command, *(one for below in getattr(command, "commands", {}).values() for one in _commands(below))]


def _paths(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = getattr(command, "commands", {})
    return [path, *(found for name, one in below.items() for found in _paths(one, (*path, name)))]


@pytest.mark.parametrize("group", ["", *ALL.commands])
def test_help_shows_flags_without_a_type_and_arguments_by_their_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    """Of every command: no <bool>, no <str>, no {NAME}."""
    paths = _paths(ALL.commands[group], (group,)) if group else [()]
    for path in paths:
        code, out, _ = said(monkeypatch, capsys, *path, "--help")
        assert code == 0
        assert not [line for line in out.splitlines() if "<" in line or "{" in line], path
    if group == "attach":
        assert out.strip().splitlines()[0].strip() == "Usage: linkspan attach [OPTIONS] TARGET"
    if group == "detach":
        assert "[OPTIONS] [TARGET]" in out


@pytest.mark.parametrize(
    ("text", "ago"), [("90s", 90), ("10m", 600), ("10min ago", 600), ("2h", 7200), ("3d", 3 * 86400)]
)
def test_a_time_may_be_an_age(text: str, ago: float) -> None:
    """In one unit."""
    assert abs(time.time() - ago - output.moment(text, "--since")) < 5


def test_a_time_may_be_a_date_or_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this machine's time zone if none is given."""
    assert output.moment("2026-01-31 20:15+00:00", "--since") == 1769890500
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    try:
        assert output.moment("2026-02-01 04:15", "--since") == 1769890500
        today = time.strftime("%Y-%m-%d ")
        assert output.moment("00:00", "--since") == output.moment(f"{today}00:00", "--since")
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    with pytest.raises(typer.BadParameter, match="is no time"):
        output.moment("25:99", "--since")


@pytest.mark.parametrize(
    "words",
    [
        ("policy", "can", "w\udcffb", "db"),
        ("policy", "can", "db", "w\udcffb"),
        ("policy", "can", "api", "db", "--port", "w\udcffb"),
        ("policy", "show", "w\udcffb"),
        ("policy", "delete", "w\udcffb"),
        ("policy", "enforce", "w\udcffb"),
        ("policy", "who-can", "w\udcffb"),
        ("endpoint", "label", "api", "w\udcffb=x"),
        ("endpoint", "show", "w\udcffb"),
        ("network", "show", "w\udcffb"),
        ("trace", "w\udcffb", "db"),
    ],
)
def test_an_argument_that_is_no_utf_8_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """It is an error like others: a line on stderr, with -o json also an object on stdout."""
    code, out, err = said(monkeypatch, capsys, *words, "--socket", "/nowhere/agent.sock")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert r"argument w\udcffb" in err
    assert "is not UTF-8" in err
    if "label" not in words:
        code, out, err = said(monkeypatch, capsys, *words, "--socket", "/nowhere/agent.sock", "-o", "json")
        assert (code, json.loads(out)["error"]["code"], err.count("\n")) == (2, "usage", 1)


def test_a_file_may_have_a_name_that_is_no_utf_8(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel takes any bytes as a file's name."""
    code, out, _ = said(monkeypatch, capsys, "policy", "apply", "no\udcff.yaml", "-o", "json")
    assert code == 1
    assert r"no\udcff.yaml" in json.loads(out)["error"]["message"]
