"""`linkspan cluster join`: where it takes the token from."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from linkspan.cli import founding, main


class Agent:
    """An agent that keeps what it is asked."""

    bodies: tuple[Any, ...] = ()

    def __init__(self, _socket: str) -> None:
        pass

    def call(self, _method: str, _path: str, body: Any = None) -> Any:
        """Answer a join."""
        Agent.bodies = (*Agent.bodies, body)
        return {"cluster": "c1", "host": "h2", "started_after": 0}


@pytest.mark.parametrize(("words", "typed"), [(["LSPAN1-a"], ""), (["-"], "LSPAN1-a\n")])
def test_a_token_is_an_argument_or_a_line_of_input(
    monkeypatch: pytest.MonkeyPatch, words: list[str], typed: str
) -> None:
    """Other users of the host see arguments, and not the input."""
    monkeypatch.setattr(Agent, "bodies", ())
    monkeypatch.setattr(founding, "Client", Agent)
    monkeypatch.setattr(founding, "ensure_answer", lambda *_: None)
    monkeypatch.setattr(founding, "_await_member", lambda *_: None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    done = CliRunner().invoke(main.app(), ["cluster", "join", *words], input=typed)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "host h2 has joined cluster c1")
    assert Agent.bodies == ({"token": "LSPAN1-a"},)
