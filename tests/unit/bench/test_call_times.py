"""bench/call_times.py: how the time of an engine's command is divided, and that calls are seen from outside."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from support.polling import until

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

import call_times
import timed_agent
from call_times import Executions, Part, Relay, Span


def test_overlapping_spans_count_once_and_only_between_the_two_times() -> None:
    spans = [Span("b", 20, 40), Span("a", 0, 30), Span("inside", 22, 25), Span("late", 60, 90)]
    assert call_times.covered(spans, 10, 70) == 30 + 10


def test_a_call_is_named_after_what_the_agent_was_asked_meanwhile() -> None:
    calls = [Span("", 10, 20), Span("", 30, 40), Span("Join", 50, 60)]
    agent = [Span("ADD", 12, 18), Span("ADD", 52, 58)]
    assert [call.what for call in call_times.named(calls, agent)] == ["ADD", call_times.UNKNOWN, "Join"]


def test_the_engine_has_what_no_call_takes() -> None:
    calls = [Span("ADD", 20, 30), Span("DEL", 70, 85), Span("ADD", 105, 110)]  # the last is the next container's
    agent = [Span("ADD", 22, 28), Span("DEL", 75, 80), Span("other", 40, 45)]
    assert call_times.divided(Span("ctr", 0, 100), calls, agent) == {
        call_times.WHOLE: Part(1, 100, 11),
        "ADD": Part(1, 10, 6),
        "DEL": Part(1, 15, 5),
        call_times.CALLS: Part(2, 25, 11),
        call_times.ENGINE: Part(1, 75, 0),
        f"{call_times.ENGINE}, {call_times.BEFORE}": Part(1, 20, 0),
        f"{call_times.ENGINE}, {call_times.BETWEEN}": Part(1, 40, 0),
        f"{call_times.ENGINE}, {call_times.AFTER}": Part(1, 15, 0),
    }


def test_a_command_without_calls_is_the_engines() -> None:
    found = call_times.divided(Span("ctr", 0, 100), [], [])
    assert found[call_times.ENGINE] == Part(1, 100, 0)


def test_a_call_that_some_commands_have_counts_nothing_in_the_others() -> None:
    divisions = [{"ADD": Part(1, 2_000_000, 0)}, {"ADD": Part(1, 4_000_000, 0), "GC": Part(1, 9_000_000, 0)}, {}]
    assert call_times.medians(divisions) == {"ADD": (1, 2.0, 0), "GC": (0, 0, 0)}


@pytest.mark.parametrize(
    ("path", "body", "asked"),
    [
        ("/cni", b"CNI_COMMAND=ADD\0CNI_IFNAME=eth0\0\0{}", "ADD"),
        ("/podman", b'COMMAND=setup\0\0{"COMMAND=": "x"}', "setup"),
        ("/NetworkDriver.Join", b'{"EndpointID": "COMMAND=x"}', "NetworkDriver.Join"),
        ("/Plugin.Activate", b"", "Plugin.Activate"),
    ],
)
def test_the_agent_knows_what_a_call_asks(path: str, body: bytes, asked: str) -> None:
    assert timed_agent.asked(path, body) == asked


@pytest.mark.root
def test_a_program_is_timed_from_its_exec_to_its_end(tmp_path: Path) -> None:
    program = tmp_path / "plugin"
    shutil.copy(shutil.which("cat") or "", program)
    times = []
    executions = Executions(program)
    with executions.watched() as spans:
        for count in (1, 2):
            before = time.perf_counter_ns()
            with subprocess.Popen(program, stdin=subprocess.PIPE) as process:
                until(lambda: executions.running, "its exec is seen")
                times.append((before, time.perf_counter_ns()))
                process.communicate()
            until(lambda count=count: len(spans) == count, "its end is seen")
    assert len(spans) == 2
    assert all(before < span.begun < seen < span.ended for span, (before, seen) in zip(spans, times, strict=True))


def test_a_relay_times_each_request_of_a_connection(tmp_path: Path) -> None:
    agent = socket.socket(socket.AF_UNIX)
    agent.bind(str(tmp_path / "agent"))
    agent.listen()

    def answer() -> None:
        connection, _ = agent.accept()
        with connection:
            while request := connection.recv(4096):
                if request.endswith(b"}"):
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n{}")

    threading.Thread(target=answer, daemon=True).start()
    relay = Relay(tmp_path / "front", tmp_path / "agent")
    with agent, relay.watched() as spans, socket.socket(socket.AF_UNIX) as engine:
        engine.connect(os.fspath(tmp_path / "front"))
        for verb in (b"Join", b"Leave"):
            engine.sendall(b"POST /NetworkDriver.%s HTTP/1.1\r\n\r\n" % verb)
            engine.sendall(b"{}")
            assert engine.recv(4096).endswith(b"{}")
        until(lambda: len(spans) == 2, "both are noted")
    assert [span.what for span in spans] == ["NetworkDriver.Join", "NetworkDriver.Leave"]
    assert all(span.begun < span.ended for span in spans)
    assert spans[0].ended <= spans[1].begun
