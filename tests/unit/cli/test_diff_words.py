"""Output of `linkspan diff` about the host, and about the inside of containers."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from linkspan.api.client import Client
from linkspan.cli import plan
from linkspan.cli.output import Format
from linkspan.diagnose.plan.differences import NOT_REPAIRED

LINK = {"kind": "Link", "key": "ls-demo", "what": "added", "inside": "", "differs": []}
MTU = {"field": "mtu", "is": "1300", "should": "1450"}
ETH0 = {"kind": "Interface", "key": "eth0", "what": "changed", "inside": "c1", "differs": [MTU]}
CHANGED = "c1 put Interface eth0 different: mtu 1300, not 1450"


@pytest.mark.parametrize(
    ("put", "rows", "noted"),
    [
        ([LINK], ["put Link ls-demo missing"], False),
        ([ETH0], [CHANGED], True),
        ([ETH0, LINK], ["put Link ls-demo missing", CHANGED], True),
    ],
    ids=["host", "inside", "both"],
)
def test_what_is_inside_containers_is_told_apart(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    put: list[dict[str, Any]],
    rows: list[str],
    noted: bool,
) -> None:
    """With what differs, the container's name, and that linkspan does not put it back; the exit code is 3."""
    found: dict[str, Any] = {"put": put, "delete": []} | ({"note": NOT_REPAIRED} if noted else {})
    monkeypatch.setattr(Client, "call", lambda *_words: found)
    with pytest.raises(typer.Exit) as ended:
        plan.diff(Format.TABLE, "/run/no.sock")
    assert ended.value.exit_code == 3
    said = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert [line for line in lines if line in rows] == rows
    assert (NOT_REPAIRED in said) is noted
