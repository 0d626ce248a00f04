"""Processes that begin as copies of the test's."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from support import copies
from support.polling import until

SLOW = """
import os, time
while not os.path.exists({gate!r}):
    time.sleep(0.01)
value = 7
"""


def test_a_copy_imports_what_another_thread_was_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That thread is not in the copy, so nobody there would finish it, and the copy would wait for ever."""
    gate, name = tmp_path / "gate", "slowly_imported"
    (tmp_path / f"{name}.py").write_text(SLOW.format(gate=str(gate)))
    monkeypatch.syspath_prepend(str(tmp_path))
    other = threading.Thread(target=importlib.import_module, args=(name,))
    other.start()
    try:
        until(lambda: name in sys.modules, "another thread imports")
        copy = os.fork()
        if not copy:
            code = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(20)
                copies.forget_unfinished_imports()
                gate.touch()
                code = 0 if importlib.import_module(name).value == 7 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 0
    finally:
        gate.touch()
        other.join()
        sys.modules.pop(name, None)
