"""What `host list` says of a host's state."""

from __future__ import annotations

import pytest

from linkspan.cli import host
from linkspan.cli.output import Format

SEEN = {"drained, silent": ("drained", None), "drained": ("drained", 1.0), "alive": ("alive", 1.0)}


@pytest.mark.parametrize("told", SEEN)
def test_a_drained_host_is_told_silent_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """Somebody who is about to remove it sees that it is off; `host remove` refuses one that lives."""
    state, seen = SEEN[told]
    one = {"id": "h3", "name": "h3", "state": state, "last_seen": seen, "version": "1", "underlay": None}
    monkeypatch.setattr(host.Client, "call", lambda *words: [{**one, "leases": []}])
    host.list_(Format.TABLE, "/run/no.sock")
    assert capsys.readouterr().out.splitlines()[1].startswith(f"h3    {told}  ")
