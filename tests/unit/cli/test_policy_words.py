"""Output of `linkspan policy`: what tests say, and which files they and the policies come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from linkspan.api.client import Client
from linkspan.cli import policy
from linkspan.cli.output import Format
from linkspan.core.errors import NotFound

CASES = """\
policy: web
ingress: []
tests:
- {from: ghost, to: web, expect: deny}
- {from: far, to: web, expect: deny}
"""
GHOST = {"from": "ghost", "to": "web", "port": "", "expected": "deny", "got": "unknown", "by": None, "line": 4}
FAR = {**GHOST, "from": "far", "port": "80/tcp", "got": "allow", "by": {"policy": "web", "line": 1}, "line": 5}
SKIPPED = {"line": 5, "file": "web.yaml", "why": "far sends nothing from here: it is on host h2"}


def _asked(monkeypatch: pytest.MonkeyPatch, found: object) -> list[tuple[Any, ...]]:
    """Return the questions that the agent gets from now on; ``found`` answers each of them."""
    questions: list[tuple[Any, ...]] = []

    def call(_self: Client, *words: object) -> object:
        questions.append(words)
        return found

    monkeypatch.setattr(Client, "call", call)
    return questions


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file with a policy and two tests."""
    made = tmp_path / "web.yaml"
    made.write_text(CASES)
    return made


def _tested(files: list[Path], *, live: bool = False) -> None:
    policy.run_tests(files, live=live, output=Format.TABLE, socket="/run/no.sock")


def test_failed_tests_name_file_and_line(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose end is no container says why; an agent of the version before names no file."""
    ghost = {**GHOST, "file": "web.yaml", "why": "endpoint 'ghost' does not exist"}
    asked = _asked(monkeypatch, {"cases": 2, "ok": 0, "failed": [ghost, FAR], "skipped": []})
    with pytest.raises(typer.Exit) as ended:
        _tested([file])
    assert ended.value.exit_code == 3
    assert capsys.readouterr().out.splitlines() == [
        "web.yaml line 4: ghost to web: endpoint 'ghost' does not exist",
        "line 5: far to web at 80/tcp: expected deny, got allow by policy web line 1",
        "0 of 2 tests pass",
    ]
    assert [(one["file"], one["line"]) for one in asked[0][2]["cases"]] == [("web.yaml", 4), ("web.yaml", 5)]


def test_skipped_tests_are_no_failed_ones(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of those that pass is one of those that were asked."""
    _asked(monkeypatch, {"cases": 2, "ok": 1, "failed": [], "skipped": [SKIPPED]})
    _tested([file], live=True)
    assert capsys.readouterr().out.splitlines() == [
        "web.yaml line 5: skipped: far sends nothing from here: it is on host h2",
        "1 of 1 tests pass, 1 skipped",
    ]


def test_what_is_given_and_not_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that is not applied because of its file's name, or its file's lack of text, would protect nobody."""
    asked = _asked(monkeypatch, {"created": ["a", "b"], "changed": [], "same": [], "warnings": []})
    for name in ("a.yaml", "b.yaml", "c.txt"):
        (tmp_path / name).write_text(f"policy: {name[0]}\ningress: []\n")
    empty = tmp_path / "empty.yaml"
    with pytest.raises(NotFound, match="cannot be read"):
        policy.apply([empty], stage=False, output=Format.TABLE, socket="")
    empty.write_text("# nothing yet\n")
    with pytest.raises(NotFound, match=r"empty.yaml: there is no policy in it"):
        policy.apply([empty], stage=False, output=Format.TABLE, socket="")
    assert not asked
    policy.apply([tmp_path], stage=False, output=Format.TABLE, socket="")
    assert [one["name"] for one in asked[0][2]["policies"]] == ["a", "b"]
    assert f"not read, because only files *.yaml, *.yml and *.json are: {tmp_path}/c.txt" in capsys.readouterr().err


def test_an_empty_name_is_no_address_of_the_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a slash in a name a path."""
    asked = _asked(monkeypatch, {"deleted": "a/b"})
    with pytest.raises(NotFound, match="policy '' does not exist"):
        policy.delete("", staged=False, output=Format.TABLE, socket="")
    policy.delete("a/b", staged=True, output=Format.TABLE, socket="")
    assert asked == [("DELETE", "/v1/policies/a%2Fb?staged")]


def test_a_diff_is_of_files_or_of_what_is_staged(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never of both."""
    for files, staged in (([], False), ([file], True)):
        with pytest.raises(typer.BadParameter, match="give FILE, or --staged"):
            policy.diff(files, staged=staged, output=Format.TABLE, socket="")
    web: dict[str, Any] = {"name": "web", "ingress": [], "egress": None, "warnings": []}
    answers = [{"policies": [{**web, "egress": [], "change": "changed"}]}, [web], []]
    monkeypatch.setattr(Client, "call", lambda *_words: answers.pop(0))
    with pytest.raises(typer.Exit):
        policy.diff([], staged=True, output=Format.TABLE, socket="")
    assert capsys.readouterr().out.splitlines() == [
        "policy web would be changed:",
        "--- recorded",
        "+++ staged",
        "@@ -1,2 +1,3 @@",
        " policy: web",
        " ingress: []",
        "+egress: []",
    ]
