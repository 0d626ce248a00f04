"""The plugin while no agent answers: what it says, and the removals that it queues."""

from __future__ import annotations

import socket
import stat
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from support.cni.agent_server import AgentServer, Request, answer
from support.cni.plugin_runs import COMMANDS, CONF, ERROR, VERSIONS, Plugin

DOWN = {"ADD": 11, "CHECK": 11, "GC": 11, "STATUS": 50}


def dead(request: Request) -> bytes:
    """Die before the answer."""
    return b""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("command", "code"), DOWN.items())
def test_agent_down(plugin: Plugin, command: str, code: int, version: str) -> None:
    """The error has the code for it, the socket's path, what to do, and the configuration's version."""
    failed = plugin.run(command, {**CONF, "cniVersion": version}).error
    assert (failed["code"], failed["cniVersion"]) == (code, version)
    assert str(plugin.socket) in failed["msg"]
    assert "linkspan agent" in failed["details"]
    assert not plugin.queue.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_agent_that_left_its_socket_is_down(plugin: Plugin, command: str) -> None:
    """A socket on which nobody listens refuses the connection."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(plugin.socket))
    outcome = plugin.run(command)
    if command == "DEL":
        assert outcome.code == 0
    else:
        assert (outcome.error["code"], "refused" in outcome.error["msg"]) == (DOWN[command], True)


HALVES: list[bytes] = [
    b"",
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n{}",
    b"HTTP/1.0 200 OK\r\nContent-Length: 30\r\n\r\n" + b'{"ips":[]}',
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n" + b'{"ips":[]}',
    b"HTTP/1.0 200 OK\r\nX: y\r\n\r\n{}\r\nContent-Length: 2",
    b'HTTP/1.0 200 OK\r\nX: y\r\n\r\n{"a":"\r\nContent-Length: 29 "}',
    b"HTTP/1.0 abc\r\nContent-Length: 2\r\n\r\n{}",
    b"SSH-2.0-x\r\nContent-Length: 2\r\n\r\n{}",
    b'HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n{"x":',
    b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ntext",
    b"HTTP/1.0 404 Not Found\r\nContent-Length: 14\r\n\r\n404: Not Found",
    b"HTTP/1.0 500 X\r\nContent-Length: 0\r\n\r\n",
]


@pytest.mark.parametrize("half", HALVES)
def test_half_an_answer_is_no_answer(plugin: Plugin, agent: AgentServer, half: bytes) -> None:
    """An agent that dies midway, or a socket of another program, counts as down; nothing of its answer is printed."""
    agent.reply(lambda request: half)
    failed = plugin.run("ADD").error
    assert (failed["code"], failed["cniVersion"]) == (11, "1.0.0")


def test_agent_that_does_not_read_may_still_answer(plugin: Plugin, tmp_path: Path) -> None:
    """An answer that comes before the whole request was read counts."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(plugin.socket))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(answer(ERROR, 413))
                connection.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve)
        thread.start()
        outcome = plugin.run("ADD", {**CONF, "x": "y" * 900_000})
        thread.join()
    assert (outcome.code, outcome.stdout) == (1, ERROR)


def test_silent_agent_does_not_hold_the_plugin_for_ever(plugin: Plugin, agent: AgentServer) -> None:
    """After its time the plugin gives up; LINKSPAN_TIMEOUT makes it shorter."""
    ended = threading.Event()

    def sleep(request: Request) -> bytes:
        ended.wait(20)
        return b""

    agent.reply(sleep)
    failed = plugin.run("ADD", LINKSPAN_TIMEOUT="1").error
    ended.set()
    assert (failed["code"], "no answer in time" in failed["msg"]) == (11, True)


def test_removal_is_queued_while_the_agent_is_down(plugin: Plugin) -> None:
    """DEL succeeds and leaves identity, boot and time in a file that only root may read."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    outcome = plugin.run("DEL", CNI_NETNS="")
    assert (outcome.code, outcome.stdout) == (0, b"")
    assert b"queued" in outcome.stderr
    (entry,) = plugin.queued()
    assert before < entry.pop("boottime_ns") < time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert entry == {"container_id": "web", "ifname": "eth0", "network": "demo", "boot_id": boot}
    assert stat.S_IMODE(plugin.queue.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in plugin.queue.iterdir()] == [0o600]


def test_queue_is_made_with_its_parents(plugin: Plugin, tmp_path: Path) -> None:
    """After a boot /run is empty; a second removal finds the folder there."""
    path = tmp_path / "run" / "linkspan" / "agent.sock"
    for _ in range(2):
        assert plugin.run("DEL", LINKSPAN_SOCKET=str(path)).code == 0
    assert len(list((path.parent / "queue").glob("*.json"))) == 2


def test_removal_that_cannot_be_queued_is_an_error(plugin: Plugin, tmp_path: Path) -> None:
    """Neither the agent nor the folder is there: the runtime must call again, and nothing is lost."""
    (tmp_path / "file").touch()
    failed = plugin.run("DEL", LINKSPAN_SOCKET=str(tmp_path / "file" / "agent.sock")).error
    assert (failed["code"], "queue" in failed["msg"]) == (11, True)


def test_removal_that_finds_no_room_says_so(plugin: Plugin, tmp_path: Path) -> None:
    """The error has the first cause, and not that of removing a file that was never made."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=2", "tmpfs", str(disk)], check=True)  # itself and queue/
    try:
        failed = plugin.run("DEL", LINKSPAN_SOCKET=str(disk / "agent.sock")).error
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert (failed["code"], failed["msg"].endswith("No space left on device")) == (11, True), failed


def test_agent_that_came_up_between_does_it_at_once(plugin: Plugin, agent: AgentServer) -> None:
    """The second try comes once the file exists, and removes it if the agent has done the work."""
    seen: list[Any] = []

    def look(request: Request) -> bytes:
        seen.extend(plugin.queued())
        return answer()

    agent.reply(dead, look)
    assert plugin.run("DEL").code == 0
    assert [entry["container_id"] for entry in seen] == ["web"]
    assert plugin.queued() == []
    assert agent.requests[0][:3] == agent.requests[1][:3]


def test_queued_removal_stays_where_the_second_try_fails(plugin: Plugin, agent: AgentServer) -> None:
    """The agent is up but refuses: the entry stays in the queue, and the call has succeeded."""
    agent.reply(dead, lambda request: answer(ERROR, 503))
    outcome = plugin.run("DEL")
    assert (outcome.code, outcome.stdout) == (0, b"")
    assert len(plugin.queued()) == 1


def test_entry_that_the_agent_took_already_is_no_error(plugin: Plugin, agent: AgentServer) -> None:
    """The agent may read the folder and remove the file while the plugin tries again."""

    def take(request: Request) -> bytes:
        for path in plugin.queue.iterdir():
            path.unlink()
        return answer()

    agent.reply(dead, take)
    assert plugin.run("DEL").code == 0
    assert plugin.queued() == []


def test_removals_at_once_are_all_queued(plugin: Plugin) -> None:
    """Thirty plugins at a time make thirty entries."""
    threads = [
        threading.Thread(target=plugin.run, args=("DEL",), kwargs={"CNI_CONTAINERID": f"c{n}"})
        for n in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry["container_id"] for entry in plugin.queued()} == {f"c{n}" for n in range(30)}
