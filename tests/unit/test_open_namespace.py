"""What callers name as a namespace is opened without trust in what it is."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from linkspan.errors import Invalid, NotFound
from linkspan.kernel.namespaces import Namespaces, open_namespace


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


def test_a_namespace_is_held_until_the_last_lets_go(tmp_path: Path) -> None:
    """Each who holds one may enter it by a descriptor, in whichever order the others end."""
    spaces = Namespaces()
    (tmp_path / "held").touch()
    fds = [os.open(tmp_path / "held", os.O_RDONLY) for _ in range(2)]
    try:
        first, second = (spaces.holding(fd) for fd in fds)
        number = first.__enter__()
        assert second.__enter__() == number
        first.__exit__(None, None, None)
        os.close(spaces.open(number))
        second.__exit__(None, None, None)
        with pytest.raises(NotFound):
            spaces.open(number)
    finally:
        spaces.close()
        for fd in fds:
            os.close(fd)
