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


@pytest.mark.parametrize(("all_", "method"), [(False, "GET"), (True, "POST")])
def test_all_hosts_are_asked_by_a_request_that_only_root_may_send(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, all_: bool, method: str
) -> None:
    """Anybody reads what this host has measured."""
    asked: list[tuple[str, ...]] = []
    path = {"host": "h1", "peer": "h2", "network": "demo", "address": "10.244.1.0", "round_trip": 0.0004, "loss": 0.25}

    def call(_client: Client, *words: str) -> object:
        asked.append(words)
        return {"hosts": ["h1"], "paths": [path], "silent": []}

    monkeypatch.setattr(Client, "call", call)
    host.peers(all_, Format.TABLE, "/run/no.sock")
    assert asked == [(method, "/v1/paths")]
    assert capsys.readouterr().out.split()[-4:] == ["10.244.1.0", "0.40", "ms", "25%"]
