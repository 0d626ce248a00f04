"""The kernel's line about a process: /proc/PID/stat (proc(5))."""

from __future__ import annotations

from pathlib import Path

_PARENT, _USER_TICKS, _KERNEL_TICKS, _START = 1, 11, 12, 19
"""Places of ppid, utime, stime and starttime behind the process's name, which may have spaces and brackets."""


def _fields(pid: int) -> list[str]:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


def parent(pid: int) -> int:
    """Return the pid of a process's parent, 0 if it has none here. Raises OSError if the process is gone."""
    return int(_fields(pid)[_PARENT])


def ticks(pid: int) -> int:
    """Return the processor time that a process has used, in clock ticks. Raises OSError if it is gone."""
    fields = _fields(pid)
    return int(fields[_USER_TICKS]) + int(fields[_KERNEL_TICKS])


def started(pid: int) -> int:
    """Return when a process started, in clock ticks after boot. Raises OSError if it is gone."""
    return int(_fields(pid)[_START])
