"""What `linkspan trace` says at the end."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from linkspan.cli import looking
from linkspan.cli.output import Format


def _hop(action: str) -> dict[str, Any]:
    return {"host": "h1", "namespace": "host", "device": "", "port": "", "action": action, "seen": None, "mtu": 1500,
            "detail": "", "headers": []}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {"verdict": "unknown", "unknown": [{"at": "h2/host", "why": "it is silent"}], "broken_at": None},
            "not known whether it is reachable, and packets may pass all the same:\n  at h2/host: it is silent\n",
        ),
        (
            {"verdict": "broken", "unknown": [], "broken_at": "h2/host", "reason": "it is silent"},
            "broken at h2/host: it is silent\n",
        ),
    ],
)
def test_a_way_of_which_nobody_tells_is_not_called_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], said: str
) -> None:
    """The data path needs neither agents nor a controller, so their silence is no answer; the exit code is 3."""
    found = found | {"reachable": False, "hops": [_hop("left")], "reply_hops": []}
    monkeypatch.setattr(looking.Client, "call", lambda *words: found)
    with pytest.raises(typer.Exit) as ended:
        looking.trace("c1", "c2", "", False, Format.TABLE, "/run/no.sock")
    assert ended.value.exit_code == 3
    assert capsys.readouterr().out.endswith(said)
