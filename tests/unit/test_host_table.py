"""What `host list` says of a host's state."""

from __future__ import annotations

import time

import pytest

from linkspan.cli import host
from linkspan.cli.output import Format

SEEN = {
    "drained, silent": ("drained", None, False),
    "drained": ("drained", 1.0, True),
    "alive": ("alive", 1.0, True),
    "silent, last seen 2 h ago": ("silent", time.time() - 7300, False),
    "unknown, last seen 3 min ago": ("unknown", time.time() - 200, None),
    "drained, unknown": ("drained", None, None),
}


@pytest.mark.parametrize("told", SEEN)
def test_a_host_s_state_says_whether_it_lives_and_when_it_was_heard(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """Somebody who is about to remove a host sees that it is off; one that nobody can tell of is not called alive."""
    state, seen, alive = SEEN[told]
    one = {"id": "h3", "name": "h3", "state": state, "last_seen": seen, "version": "1", "underlay": None}
    monkeypatch.setattr(host.Client, "call", lambda *words: [{**one, "leases": [], "alive": alive}])
    host.list_(Format.TABLE, "/run/no.sock")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"h3    {told}  ")
    assert any("the store tells nothing" in line for line in lines) == (alive is None)
