from __future__ import annotations

import concurrent.futures
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from linkspan.api import WARNINGS, client
from linkspan.api.responses import answer
from linkspan.core.errors import Unavailable


def full(path: Path) -> tuple[socket.socket, list[socket.socket]]:
    """Return a server that takes nobody in, and the callers that fill its backlog."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(0)
    waiting: list[socket.socket] = []
    while True:
        waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        try:
            waiting[-1].connect(str(path))
        except BlockingIOError:
            return server, waiting


def test_a_caller_waits_for_its_turn_where_many_ask_at_once(tmp_path: Path) -> None:
    """An agent whose backlog is full is no agent that is down."""
    path = tmp_path / "agent.sock"
    server, waiting = full(path)

    def serve() -> None:
        for _ in waiting[:-1]:  # the last found no room
            server.accept()[0].close()
        with server.accept()[0] as caller:
            caller.recv(65536)
            caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.Client(str(path)).call, "GET", "/v1/status")
        assert not concurrent.futures.wait([asked], 0.2).done, "it waits, and is not refused"
        serve()
        assert asked.result(60) == {}
    for one in waiting:
        one.close()


def test_warnings_are_in_a_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is as documented; what prints warnings gets them, whatever they are written in."""
    path, told = tmp_path / "agent.sock", list[str]()
    monkeypatch.setattr(client.Client, "warned", client.Client.warned)
    client.Client.warn_by(told.append)
    made = answer({}, warnings=("host h2 is silent", "网络"))
    head = f"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{WARNINGS}: {made.headers[WARNINGS]}\r\n\r\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server, ThreadPoolExecutor(1) as pool:
        server.bind(str(path))
        server.listen()
        asked = pool.submit(client.Client(str(path)).call, "GET", "/v1/policies")
        with server.accept()[0] as caller:
            caller.recv(65536)
            caller.sendall(head.encode("ascii") + b"{}")
        assert asked.result(60) == {}
    assert told == ["host h2 is silent", "网络"]
    assert WARNINGS not in answer({}).headers


def test_an_agent_that_hangs_is_told_of_and_not_waited_for(tmp_path: Path) -> None:
    """Its socket takes the question, and no answer comes: the error names the socket, and what to look at."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hanging:
        hanging.bind(str(path))
        hanging.listen()
        with pytest.raises(Unavailable, match="has not answered for") as error:
            client.Client(str(path), 0.2).call("GET", "/v1/status")
    assert str(path) in error.value.message
    assert "systemctl status linkspan" in error.value.hint


def test_an_agent_that_hangs_with_a_full_backlog_is_told_of_as_well(tmp_path: Path) -> None:
    """Nobody waits for ever to be let in."""
    server, waiting = full(tmp_path / "agent.sock")
    with server, pytest.raises(Unavailable, match="has not answered for"):
        client.Client(str(tmp_path / "agent.sock"), 0.2).call("GET", "/v1/status")
    for one in waiting:
        one.close()


def test_in_a_lab_the_lab_starts_an_agent_that_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is started by itself would be the machine's own."""
    path = tmp_path / "try" / "h2" / "agent.sock"
    with pytest.raises(Unavailable) as error:
        client.Client(str(path)).call("GET", "/v1/status")
    assert "sudo linkspan agent" in error.value.hint
    monkeypatch.setattr(client, "LABS", tmp_path)
    with pytest.raises(Unavailable) as error:
        client.Client(str(path)).call("GET", "/v1/status")
    assert error.value.hint == "`linkspan lab mend h2 --lab try` starts it"
