"""Garbage: memory that a process has freed goes back to the kernel, and what stays is not looked at again and again."""

from __future__ import annotations

import subprocess
import sys

MEASURED = """
from linkspan.core.garbage import give_back

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

pieces = [bytearray(2000) for _ in range(10_000)]
last = bytearray(2000)
del pieces
before = resident()
give_back()
print(before - resident())
"""


def test_what_lies_between_pieces_in_use_is_given_back() -> None:
    """By itself, glibc gives back only what is at the end of its heap."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10_000


GROWN = """
import gc, time
from linkspan.core import garbage

def collected():
    begun = time.thread_time()
    gc.collect()
    return time.thread_time() - begun

garbage.collect_usually()
few = gc.get_freeze_count()
gc.collect()
assert gc.get_freeze_count() == few
stays = [[] for _ in range(1_000_000)]
gc.collect()
left = collected()
gc.unfreeze()
print(left / collected())
"""


def test_what_comes_later_and_stays_is_left_out_of_later_collections() -> None:
    """A thousand hosts may join while an agent runs: a collection of all that it has then stops it for 0.1 s."""
    done = subprocess.run([sys.executable, "-c", GROWN], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.3
