"""All watches of a process are of one inotify instance, and each user is told of its own files."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from linkspan.core.errors import Unavailable
from linkspan.endpoints import detach
from linkspan.endpoints.registry import Registry
from linkspan.kernel.io import inotify
from linkspan.kernel.io.inotify import FolderWatch, WriteWatch
from linkspan.runtimes.cni import cni_deletions
from linkspan.runtimes.cni.cni_deletions import Removals
from linkspan.store.memory import Memory
from support.memory_machine import registry_of
from support.polling import eventually
from support.records.replicas import Member


def instances() -> int:
    """Return how many inotify instances this process has."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found += "inotify" in os.readlink(f"/proc/self/fd/{fd}")
    return found


def folders(tmp_path: Path) -> list[Path]:
    """Make two folders."""
    made = [tmp_path / "one", tmp_path / "two"]
    for one in made:
        one.mkdir()
    return made


def test_a_copy_of_a_process_has_an_instance_of_its_own() -> None:
    """With its parent's, each event would reach only one of them."""
    parents = inotify._instance()
    copy = os.fork()
    if copy == 0:
        os._exit(inotify._instance() is parents)
    assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 0


def test_many_watches_take_one_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets the events of its own folder, two of the same folder both, and the rest if one has closed."""
    monkeypatch.setattr(inotify, "_shared", [])

    async def work() -> None:
        one, two = folders(tmp_path)
        before = instances()
        told: list[str] = []
        places = {"a": one, "b": two, "also b": two}
        watches = {name: FolderWatch(where, partial(told.append, name)) for name, where in places.items()}
        writes = WriteWatch([one / "none", tmp_path / "file"])
        assert instances() == before + 1
        (one / "x").write_text("")
        await eventually(lambda: told == ["a"], "a is told", 10)
        (two / "x").write_text("")
        await eventually(lambda: sorted(told) == ["a", "also b", "b"], "all are told", 10)
        watches["b"].close()
        told.clear()
        (two / "y").write_text("")
        await eventually(lambda: told == ["also b"], "the one that is left is told", 10)
        for name in ("a", "also b"):
            watches[name].close()
        writes.close()

    asyncio.run(work())


def test_who_reads_gives_the_others_their_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread gets the events of its file; the folder's callback still runs in the loop."""
    monkeypatch.setattr(inotify, "_shared", [])
    (tmp_path / "file").touch()

    async def work() -> None:
        one, told = folders(tmp_path)[0], list[str]()
        watch = FolderWatch(one, partial(told.append, "a"))
        writes = WriteWatch([tmp_path / "file"])
        (one / "x").write_text("")
        (tmp_path / "file").write_text("")
        assert writes.written() == {str(tmp_path / "file")}  # before the loop has had a turn
        assert writes.written() == set()
        await eventually(lambda: told == ["a"], "a is told", 10)
        writes.close()
        writes.close()
        watch.close()

    asyncio.run(work())


def test_what_others_read_before_a_user_listens_is_told_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are watched from the agent's first moment on, and who follows them comes later."""
    monkeypatch.setattr(inotify, "_shared", [])
    (tmp_path / "file").touch()

    async def work() -> None:
        one, told = folders(tmp_path)[0], list[str]()
        writes = WriteWatch([tmp_path / "file"])
        (tmp_path / "file").write_text("")
        watch = FolderWatch(one, partial(told.append, "a"))
        (one / "y").write_text("")
        await eventually(lambda: told == ["a"], "a is told", 10)
        writes.listen(partial(told.append, "file"))
        await eventually(lambda: told == ["a", "file"], "the file is told", 10)
        assert writes.written() == {str(tmp_path / "file")}
        watch.close()
        writes.close()

    asyncio.run(work())


def test_a_host_without_a_watch_to_spare_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's watches are limited, too: then no event comes, and the problem is reported."""
    monkeypatch.setattr(inotify, "_shared", [])
    (tmp_path / "file").touch()
    monkeypatch.setattr(inotify._libc, "inotify_add_watch", lambda *_: -1)
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.ENOSPC)
    writes = WriteWatch([tmp_path / "file"])
    assert writes.problem == "no space left on device"
    assert writes.written() == set()
    writes.close()


def test_events_that_were_lost_are_told_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel keeps 16,384 events and reports an overflow: then every watch checks."""
    monkeypatch.setattr(inotify, "_shared", [])

    async def work() -> None:
        places, told = folders(tmp_path), list[Path]()
        watches = [FolderWatch(where, partial(told.append, where)) for where in places]
        watches[0]._instance.give(-1)
        await eventually(lambda: set(told) == set(places), "all places are told", 10)
        for watch in watches:
            watch.close()

    asyncio.run(work())


def test_queued_removals_are_done_without_an_instance_to_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent starts, says so, and looks again and again."""
    monkeypatch.setattr(inotify, "_shared", [])
    monkeypatch.setattr(inotify._libc, "inotify_init1", lambda _flags: -1)
    monkeypatch.setattr(cni_deletions, "RETRY", 0.05)
    removal = b'{"container_id": "c1", "ifname": "eth0", "network": "demo", "boot_id": "b", "boottime_ns": 2}'

    gone: list[str] = []

    async def detached(_registry: Registry, container: str, _ifname: str, _network: str) -> int:
        gone.append(container)
        return 1

    monkeypatch.setattr(detach, "detach", detached)

    async def work() -> None:
        registry = registry_of(Member(Memory(), tmp_path, "h1"), tmp_path)
        registry.attached_ns["c1", "eth0"] = 1
        one = Removals(tmp_path / "queue", registry, "b")
        await one.start()
        assert "inotify instance" in caplog.text
        (tmp_path / "queue" / "1.json").write_bytes(removal)
        await eventually(lambda: gone == ["c1"], "c1 is detached", 10)
        await one.stop()
        assert list((tmp_path / "queue").iterdir()) == []

    asyncio.run(work())


def test_one_timer_waits_however_many_removals_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away fails each removal as it comes; the queue as a whole is tried again later, once."""
    monkeypatch.setattr(inotify, "_shared", [])
    monkeypatch.setattr(cni_deletions, "RETRY", 600.0)
    timers: list[asyncio.TimerHandle] = []

    gone: list[str] = []

    async def failing(_registry: Registry, container: str, _ifname: str, _network: str) -> int:
        gone.append(container)
        raise Unavailable("the store is away")

    monkeypatch.setattr(detach, "detach", failing)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        registry = registry_of(Member(Memory(), tmp_path, "h1"), tmp_path)
        registry.attached_ns["c1", "eth0"] = 1
        later = loop.call_later

        def call_later(delay: float, *rest: Any) -> asyncio.TimerHandle:
            timers.append(later(delay, *rest))
            return timers[-1]

        monkeypatch.setattr(loop, "call_later", call_later)
        one = Removals(tmp_path / "queue", registry, "b")
        await one.start()
        for number in range(5):
            tried = len(gone)
            removal = {"container_id": "c1", "ifname": "eth0", "network": "demo", "boot_id": "b", "boottime_ns": 2}
            (tmp_path / "queue" / f"{number}.json").write_text(json.dumps(removal))
            await eventually(lambda tried=tried, number=number: len(gone) > tried + number, "a try for each file", 10)
        await eventually(lambda: not one._tasks, "all tries are over", 10)
        assert len([timer for timer in timers if not timer.cancelled()]) == 1
        await one.stop()
        assert all(timer.cancelled() for timer in timers)

    asyncio.run(work())
