from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.reconcile import Reconciler
from linkspan.core.states.programs import File, Process
from linkspan.kernel.drivers import files
from linkspan.kernel.drivers.files import FileDriver
from linkspan.kernel.drivers.processes import KINDS as HELPERS
from linkspan.kernel.drivers.processes import ProcessDriver


@pytest.fixture
def reconciler(tmp_path: Path) -> Iterator[Reconciler]:
    processes = ProcessDriver(tmp_path / "state")
    written = FileDriver(tmp_path / "state/files.json")
    reconciler = Reconciler([(kind, written) for kind in files.KINDS] + [(kind, processes) for kind in HELPERS])
    yield reconciler
    reconciler.desired.replace(("network", "demo"), ())
    reconciler.resync()
    assert list(processes.observe(0)) == []
    processes.close()


def test_a_changed_file_is_one_reload_of_its_helper(reconciler: Reconciler, tmp_path: Path) -> None:
    """A resync writes the file, starts the helper, and later reloads it once; a second pass changes nothing."""
    source = ("network", "demo")
    count = tmp_path / "count"
    file = File(str(tmp_path / "bird/bird.conf"), b"1")
    helper = Process("bird", ("sleep", "1000"), ("sh", "-c", f"echo >> {count}"), (file.path,))
    reconciler.desired.replace(source, (file, helper))
    report = reconciler.resync()
    assert report.failed == {}
    assert [heal.kind for heal in report.heals] == ["File", "Process"]
    assert reconciler.resync().heals == []
    assert not count.exists()
    reconciler.desired.replace(source, (File(file.path, b"2"), helper))
    assert [heal.kind for heal in reconciler.resync().heals] == ["File", "Process"]
    assert count.read_text() == "\n"
    assert reconciler.resync().heals == []
    Path(file.path).write_bytes(b"by hand")
    reconciler.resync()
    assert Path(file.path).read_bytes() == b"2"
    assert reconciler.resync().heals == []


def test_a_helper_that_ends_at_once_is_started_once_in_a_resync(reconciler: Reconciler, tmp_path: Path) -> None:
    """A refused state is left to the next resync, so one cause is one death, and the error is reported."""
    count = tmp_path / "count"
    helper = Process("ipip", ("sh", "-c", f"echo >> {count}; exit 1"))
    reconciler.desired.replace(("network", "demo"), (helper, File(str(tmp_path / "table"), b"1")))
    report = reconciler.resync()
    assert count.read_text() == "\n"
    assert "ended at once" in report.failed[helper.key].message
    assert [heal.kind for heal in report.heals] == ["File"]
