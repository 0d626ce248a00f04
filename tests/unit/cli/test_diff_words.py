"""Output of `linkspan diff` about the host, and about the inside of containers."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from linkspan.api.client import Client
from linkspan.cli import plan
from linkspan.cli.output import Format

LINK = {"kind": "Link", "key": "ls-demo", "what": "added", "inside": ""}
ETH0 = {"kind": "Interface", "key": "eth0", "what": "changed", "inside": "c1"}
NOT_MENDED = "linkspan repairs nothing inside a running container"


@pytest.mark.parametrize(
    ("put", "rows", "noted"),
    [
        ([LINK], ["put Link ls-demo missing"], False),
        ([ETH0], ["c1 put Interface eth0 different"], True),
        ([ETH0, LINK], ["put Link ls-demo missing", "c1 put Interface eth0 different"], True),
        ([{key: LINK[key] for key in ("kind", "key", "what")}], ["put Link ls-demo missing"], False),
    ],
    ids=["host", "inside", "both", "older agent"],
)
def test_what_is_inside_containers_is_told_apart(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    put: list[dict[str, str]],
    rows: list[str],
    noted: bool,
) -> None:
    """With the container's name, and that linkspan does not put it back; the exit code is 3 for either."""
    found: dict[str, Any] = {"put": put, "delete": []}
    monkeypatch.setattr(Client, "call", lambda *_words: found)
    with pytest.raises(typer.Exit) as ended:
        plan.diff(Format.TABLE, "/run/no.sock")
    assert ended.value.exit_code == 3
    said = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert [line for line in lines if line in rows] == rows
    assert (NOT_MENDED in said) is noted
