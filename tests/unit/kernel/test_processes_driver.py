from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from linkspan.core.errors import NotFound, Unavailable
from linkspan.core.states.host import HOST
from linkspan.core.states.programs import Process
from linkspan.kernel.drivers import processes
from linkspan.kernel.drivers.processes import ProcessDriver
from support.polling import until

SLEEP = ("sleep", "1000")


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[ProcessDriver]:
    driver = ProcessDriver(tmp_path / "state", grace=1.0)
    yield driver
    driver.apply([], list(driver.observe(HOST)))
    driver.close()


def pid(driver: ProcessDriver, name: str = "a") -> int:
    return driver._living()[name].pid


def kill(driver: ProcessDriver) -> None:
    """End the helper as a crash does, and wait for its end."""
    running = driver._living()["a"]
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait(10)


def test_a_helper_is_started_once_and_stopped(driver: ProcessDriver) -> None:
    """It leads its own session; a second put changes nothing; delete ends it."""
    wanted = Process("a", SLEEP)
    assert driver.apply([wanted], []) == {}
    assert list(driver.observe(HOST)) == [wanted]
    first = pid(driver)
    assert os.getsid(first) == first
    assert driver.apply([wanted], []) == {}
    assert pid(driver) == first
    assert driver.apply([], [wanted]) == {}
    assert list(driver.observe(HOST)) == []
    assert not Path(f"/proc/{first}").exists()
    assert driver.apply([], [wanted]) == {}


def test_a_helper_outlives_the_agent_and_is_adopted(tmp_path: Path, driver: ProcessDriver) -> None:
    """The agent that started it is a process that has ended; the next one knows all of the state."""
    wanted = Process("a", SLEEP, reload=("true",))
    program = (
        "import sys; from pathlib import Path; from linkspan.kernel.drivers.processes import ProcessDriver as D;"
        "from linkspan.core.states.programs import Process;"
        "print(D(Path(sys.argv[1])).apply([Process('a', ('sleep', '1000'), reload=('true',))], []))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "state"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "{}"
    assert list(driver.observe(HOST)) == [wanted]
    other = ProcessDriver(tmp_path / "other")
    assert list(other.observe(HOST)) == []  # another state folder's agent sees none of it
    other.close()


def test_a_death_is_told_by_the_descriptor(driver: ProcessDriver) -> None:
    """The descriptor is readable once, the helper is no longer observed, and a put starts another."""
    wanted = Process("a", SLEEP)
    driver.apply([wanted], [])
    first = pid(driver)
    assert not driver.died()
    os.kill(first, signal.SIGKILL)
    assert select.select([driver.fileno()], [], [], 10)[0]
    assert driver.died()
    assert not driver.died()
    assert list(driver.observe(HOST)) == []
    driver.apply([wanted], [])
    assert pid(driver) != first


def test_another_argv_is_a_restart(driver: ProcessDriver) -> None:
    """Nothing is left of the old one."""
    driver.apply([Process("a", SLEEP)], [])
    first = pid(driver)
    wanted = Process("a", ("sleep", "1001"))
    assert driver.apply([wanted], []) == {}
    assert list(driver.observe(HOST)) == [wanted]
    assert pid(driver) != first


def test_changed_files_are_one_reload(driver: ProcessDriver, tmp_path: Path) -> None:
    """Two changed files make the observed state differ; one put reloads once, and then it is equal."""
    files = (tmp_path / "1", tmp_path / "2")
    for file in files:
        file.write_text("old")
    count = tmp_path / "count"
    wanted = Process("a", SLEEP, reload=("sh", "-c", f"echo >> {count}"), files=tuple(map(str, files)))
    driver.apply([wanted], [])
    assert list(driver.observe(HOST)) == [wanted]
    first = pid(driver)
    for file in files:
        file.write_text("new")
    assert list(driver.observe(HOST)) == [msgspec.structs.replace(wanted, files=())]
    assert driver.apply([wanted], []) == {}
    assert list(driver.observe(HOST)) == [wanted]
    assert count.read_text() == "\n"
    assert pid(driver) == first


def test_a_kill_between_file_and_reload_is_made_good(driver: ProcessDriver, tmp_path: Path) -> None:
    """The next agent finds that the helper has not loaded the file."""
    file = tmp_path / "1"
    file.write_text("old")
    wanted = Process("a", SLEEP, reload=("true",), files=(str(file),))
    driver.apply([wanted], [])
    file.write_text("new")
    again = ProcessDriver(tmp_path / "state")
    assert list(again.observe(HOST)) != [wanted]
    assert again.apply([wanted], []) == {}
    assert list(again.observe(HOST)) == [wanted]
    again.close()


def test_without_a_reload_command_a_changed_file_is_a_restart(driver: ProcessDriver, tmp_path: Path) -> None:
    """The helper reads its file at its start only."""
    file = tmp_path / "1"
    file.write_text("old")
    wanted = Process("a", SLEEP, files=(str(file),))
    driver.apply([wanted], [])
    first = pid(driver)
    file.write_text("new")
    driver.apply([wanted], [])
    assert pid(driver) != first
    assert list(driver.observe(HOST)) == [wanted]


def test_a_helper_that_rereads_is_sent_sighup_once_for_a_change(driver: ProcessDriver, tmp_path: Path) -> None:
    """It stays the same process, and the state is in place at once."""
    file, heard = tmp_path / "file", tmp_path / "heard"
    file.write_text("1")
    script = (
        "import pathlib, signal, sys, time; heard = pathlib.Path(sys.argv[1]);"
        "signal.signal(signal.SIGHUP, lambda *_: heard.write_text(heard.read_text() + 'x'));"
        "heard.write_text('')\nwhile True: time.sleep(0.01)"
    )
    wanted = Process("a", ("nohup", sys.executable, "-c", script, str(heard)), files=(str(file),), hup=True)
    assert driver.apply([wanted], []) == {}
    until(heard.exists, "it is ready", 10)
    first = pid(driver)
    file.write_text("2")
    assert list(driver.observe(HOST)) != [wanted]
    assert driver.apply([wanted], []) == {}
    assert list(driver.observe(HOST)) == [wanted]
    assert driver.apply([wanted], []) == {}
    until(lambda: heard.read_text() == "x", "it was told, once", 10)
    assert pid(driver) == first


def test_a_helper_that_is_not_wanted_any_more_leaves_no_log(driver: ProcessDriver) -> None:
    """Nobody needs its output then."""
    wanted = Process("a", ("sh", "-c", "echo hello; exec sleep 1000"))
    assert driver.apply([wanted], []) == {}
    until(lambda: driver.log("a").read_text() == "hello\n", "it said something", 10)
    assert driver.apply([], [wanted]) == {}
    assert not driver.log("a").exists()


def test_a_failed_reload_says_what_the_helper_said(driver: ProcessDriver, tmp_path: Path) -> None:
    """The file stays unloaded, so the next pass tries again."""
    file = tmp_path / "1"
    file.write_text("old")
    wanted = Process("a", SLEEP, reload=("sh", "-c", "echo no semicolon; exit 1"), files=(str(file),))
    driver.apply([wanted], [])
    file.write_text("new")
    error = driver.apply([wanted], [])[wanted.key]
    assert isinstance(error, Unavailable)
    assert "no semicolon" in error.message
    assert list(driver.observe(HOST)) != [wanted]


def test_a_helper_that_refuses_its_configuration_is_an_error(driver: ProcessDriver) -> None:
    """The error has its last words; a program that is not there is named."""
    bad = Process("a", ("sh", "-c", "echo line 3: what; exit 2"))
    error = driver.apply([bad], [])[bad.key]
    assert "line 3: what" in error.message
    missing = Process("b", ("/nowhere/bird",))
    error = driver.apply([missing], [])[missing.key]
    assert isinstance(error, NotFound)
    assert "/nowhere/bird" in error.message
    assert list(driver.observe(HOST)) == []


def test_a_helper_that_ignores_sigterm_is_killed_with_its_children(
    driver: ProcessDriver, tmp_path: Path
) -> None:
    """The wait is bounded, and a child left behind does not survive."""
    child = tmp_path / "child"
    wanted = Process(
        "a", ("sh", "-c", f"trap '' TERM; sleep 1000 & echo $! > {child}; while :; do wait; done")
    )
    driver.apply([wanted], [])
    until(lambda: child.exists() and child.read_text(), "the child's number", 10)
    number = int(child.read_text())
    assert driver.apply([], [wanted]) == {}
    until(lambda: not _lives(number), "the child's end", 10)


@pytest.mark.parametrize("dying", [(), ("setpriv", "--pdeathsig", "TERM")], ids=["left", "dying"])
def test_a_child_has_ended_when_its_helper_is_stopped(
    driver: ProcessDriver, tmp_path: Path, dying: tuple[str, ...]
) -> None:
    """The next helper opens what the child held: a TUN device or a port. This child needs long to end."""
    child = tmp_path / "child"
    told = f"open({str(child)!r}, 'w').write(str(os.getpid()))"
    big = f"import os, time; b = b'1' * (400 << 20); {told}; time.sleep(1000)"
    command = " ".join([*dying, sys.executable])
    wanted = Process("a", ("sh", "-c", f'{command} -c "{big}" & wait'))
    assert driver.apply([wanted], []) == {}
    until(lambda: child.exists() and child.read_text(), "the child's number", 20)
    assert driver.apply([], [wanted]) == {}
    assert not _lives(int(child.read_text()))


def _lives(number: int) -> bool:
    """Return whether a process lives; a zombie does not: PID 1 may reap late."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_changed_folder_is_one_reload(driver: ProcessDriver, tmp_path: Path) -> None:
    """A file added, changed, removed; a hidden file, still being written, does not count."""
    folder = tmp_path / "peers"
    count = tmp_path / "count"
    wanted = Process("a", SLEEP, reload=("sh", "-c", f"echo >> {count}"), files=(str(folder),))
    driver.apply([wanted], [])
    folder.mkdir()
    changes: tuple[Callable[[], object], ...] = (
        lambda: (folder / "1.conf").write_text("x"),
        lambda: (folder / "1.conf").write_text("y"),
        lambda: (folder / "1.conf").unlink(),
    )
    for number, change in enumerate(changes):
        assert (list(driver.observe(HOST)) == [wanted]) == bool(number)
        change()
        assert list(driver.observe(HOST)) != [wanted]
        driver.apply([wanted], [])
        assert list(driver.observe(HOST)) == [wanted]
    (folder / ".2.conf.new").write_text("z")
    assert list(driver.observe(HOST)) == [wanted]
    assert count.read_text() == "\n\n\n"


def test_a_start_after_a_death_is_told_that_it_is_one(driver: ProcessDriver, tmp_path: Path) -> None:
    """By the next agent too; a helper that was removed starts again."""
    log = tmp_path / "starts"
    script = f'echo "$@" >> {log}; exec sleep 1000'
    wanted = Process("a", ("sh", "-c", script, "sh", "-f"), again=("-R",))
    driver.apply([wanted], [])
    until(lambda: log.exists() and log.read_text() == "-f\n", "the first start", 10)
    kill(driver)
    again = ProcessDriver(tmp_path / "state")
    again.apply([wanted], [])
    until(lambda: log.read_text() == "-f\n-f -R\n", "the second", 10)
    assert list(again.observe(HOST)) == [wanted]
    again.apply([], [wanted])
    again.apply([wanted], [])
    until(lambda: log.read_text() == "-f\n-f -R\n-f\n", "the third", 10)
    again.apply([], [wanted])
    again.close()


def test_a_helper_that_dies_over_and_over_waits_longer_each_time(driver: ProcessDriver) -> None:
    """The starts after the first four deaths are at once; later ones are refused meanwhile, with the reason."""
    wanted = Process("a", SLEEP)
    assert driver.down("a") is not None  # it was never there
    refused, deaths = "", 0
    while not refused:
        errors = driver.apply([wanted], [])
        if errors:
            refused = errors[wanted.key].message
        else:
            assert driver.down("a") is None
            kill(driver)
            deaths += 1
    assert deaths == 5
    assert "a ended 5 times soon after its start; next start in 1 s" in refused
    since = driver.down("a")
    assert since is not None
    until(lambda: not driver.apply([wanted], []), "it is started again", 10)
    kill(driver)
    later = driver.down("a")
    assert later is not None
    assert later > since  # it counts from the first death of the series


@pytest.mark.root
@pytest.mark.parametrize("stranger", [("setpriv", "--reuid", "65534"), ("unshare", "--net")], ids=["user", "container"])
def test_a_strangers_process_is_no_helper(driver: ProcessDriver, tmp_path: Path, stranger: tuple[str, ...]) -> None:
    """A mark is what anybody may write: another user's process, or a container's, neither hides nor is a helper."""
    wanted = Process("a", SLEEP)
    driver.apply([wanted], [])
    ours = pid(driver)
    marks = dict(p.split("=", 1) for p in Path(f"/proc/{ours}/environ").read_text().split("\0") if "=" in p)
    posing = subprocess.Popen([*stranger, *SLEEP], env=marks, start_new_session=True)
    try:
        until(lambda: Path(f"/proc/{posing.pid}/cmdline").read_bytes().startswith(b"sleep"), "it poses", 10)
        again = ProcessDriver(tmp_path / "state")
        assert pid(again) == ours
        again.apply([], [wanted])
        again.close()
        assert posing.poll() is None
    finally:
        posing.kill()
        posing.wait()


def test_a_reload_that_hangs_is_waited_for_once(
    driver: ProcessDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it ends every further put is refused at once; then only the loaded files count."""
    monkeypatch.setattr(processes, "RELOAD", 0.2)
    file, gate, count = tmp_path / "1", tmp_path / "gate", tmp_path / "count"
    file.write_text("old")
    script = f"echo >> {count}; while ! test -e {gate}; do sleep 0.01; done"
    wanted = Process("a", SLEEP, reload=("sh", "-c", script), files=(str(file),))
    driver.apply([wanted], [])
    file.write_text("new")
    assert "no answer yet" in str(driver.apply([wanted], [])[wanted.key])
    file.write_text("newer")
    monkeypatch.setattr(processes, "RELOAD", 1000)
    assert "no answer yet" in str(driver.apply([wanted], [])[wanted.key])
    assert count.read_text() == "\n"
    gate.touch()
    until(lambda: driver.apply([wanted], []) == {}, "it has ended", 10)
    assert list(driver.observe(HOST)) == [wanted]
    assert count.read_text() == "\n\n"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("one", "two", "three", "four"), "two / three / four"),
        (
            (
                '{"level":"fatal","msg":"open wal failed","error":"no space left on device"}',
                '{"level":"info","ts":"2026-12-02","caller":"embed/config.go:689","msg":"Running http"}',
                "exit status 1",
            ),
            "open wal failed: no space left on device",
        ),
        (('{"level":"info","msg":"first"}', '{"level":"info","msg":"second"}'), "first / second"),
        (("short", "x" * 299), "x" * 299),
    ],
)
def test_the_end_of_a_helper_s_log_says_why_it_ended(
    driver: ProcessDriver, tmp_path: Path, lines: tuple[str, ...], told: str
) -> None:
    """Errors alone, if it writes JSON and there are any; and no line is cut."""
    printed = tmp_path / "printed"
    printed.write_text("".join(f"{line}\n" for line in lines))
    wanted = Process("a", ("cat", str(printed)))
    (error,) = driver.apply([wanted], []).values()
    assert error.message == f"a ended at once: {told}"
