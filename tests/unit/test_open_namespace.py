"""What callers name as a namespace is opened without trust in what it is."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from linkspan.errors import Invalid
from linkspan.kernel.namespaces import open_namespace


def test_a_fifo_without_a_writer_keeps_nobody_waiting(tmp_path: Path) -> None:
    """It is refused at once as what it is: no network namespace."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(open_namespace, str(fifo))
        try:
            with pytest.raises(Invalid, match="is not a network namespace"):
                opened.result(10)
        finally:
            os.close(os.open(fifo, os.O_RDWR))  # lets one go that waits
