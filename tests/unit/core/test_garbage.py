"""Memory that a process has freed goes back to the kernel."""

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
