"""State column of `host list`."""

from __future__ import annotations

import time

import pytest

from linkspan.api.client import Client
from linkspan.cli import host
from linkspan.cli.output import Format

SEEN = {
    "drained, silent": ("drained", None, False),
    "drained": ("drained", 100000.0, True),
    "alive": ("alive", 100000.0, True),
    "silent, last seen 2 h ago": ("silent", 7300.0, False),
    "unknown, last seen 3 min ago": ("unknown", 200.0, None),
    "drained, unknown": ("drained", None, None),
}
"""By what is shown: the state, the seconds since the host was heard, and whether it is alive."""


@pytest.mark.parametrize("told", SEEN)
def test_a_host_s_state_says_whether_it_lives_and_when_it_was_heard(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """The table shows a stopped host as off; a host of unknown state is not called alive."""
    state, ago, alive = SEEN[told]
    seen = None if ago is None else time.time() - ago
    one = {"id": "h3", "name": "h3", "state": state, "last_seen": seen, "version": "1", "underlay": None}
    monkeypatch.setattr(Client, "call", lambda *words: [{**one, "leases": [], "alive": alive}])
    host.list_(Format.TABLE, "/run/no.sock")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"h3    {told}  ")
    assert any("the store does not answer" in line for line in lines) == (alive is None)
