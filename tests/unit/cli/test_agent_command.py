"""Messages of `linkspan agent` before it becomes the agent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from linkspan.cli import main


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "the agent changes this machine's network, which needs root; sudo linkspan agent"),
        (("--config", "none.toml"), "config file none.toml cannot be read: no such file or directory; correct"),
        (("--config", "wrong.toml"), "config file wrong.toml: expected '=' after a key"),
    ],
)
def test_an_agent_that_cannot_start_says_why_and_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    told: str,
) -> None:
    """In one line, before anything is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.toml").write_text("names no\n")
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr("sys.argv", ["linkspan", "agent", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (1, 1)
    assert said.startswith(f"linkspan: {told}")
