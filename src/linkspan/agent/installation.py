"""Files that `install` puts on a machine, as File states: runtimes find linkspan by them.

They are recorded apart from the agent's own files, because a machine is installed before an agent runs, and
stays installed while no agent runs. `uninstall` removes them by the same record.
"""

from __future__ import annotations

import grp
import subprocess
from collections.abc import Iterable
from pathlib import Path

from linkspan.core.config import GROUP
from linkspan.core.errors import LinkspanError
from linkspan.core.states.host import ROUTE_PROTOCOL
from linkspan.core.states.programs import File
from linkspan.kernel.drivers.files import FileDriver
from linkspan.runtimes import systemd

RECORD = "installed.json"
UNIT = f"{systemd.UNITS}/{systemd.UNIT_NAME}"
SYSUSERS = "etc/sysusers.d/linkspan.conf"
PROTOCOLS = "etc/iproute2/rt_protos.d/linkspan.conf"


def service(executable: str, root: Path, *, group: bool) -> Iterable[File]:
    """Return the agent's unit, the name of our route protocol for `ip route`, and the group (sysusers.d(5))."""
    yield File(str(root / PROTOCOLS), f"{ROUTE_PROTOCOL} linkspan\n".encode())
    if group:
        yield File(str(root / SYSUSERS), f"g {GROUP} -\n".encode())
    yield File(str(root / UNIT), systemd.unit(executable).encode())


def owns_group(state_dir: Path) -> bool:
    """Return whether linkspan made the group, so that it may also remove it."""
    return not _has_group() or any(file.path == f"/{SYSUSERS}" for file in installed(state_dir))


def has_own_group(state_dir: Path) -> bool:
    """Return whether a group exists that our file made."""
    return _has_group() and owns_group(state_dir)


def _has_group() -> bool:
    return any(one.gr_name == GROUP for one in grp.getgrall())


def put(state_dir: Path, files: Iterable[File]) -> list[str]:
    """Write the files, in order, and return their paths. Try all, then raise the first error."""
    wanted = list(files)
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    failed = FileDriver(state_dir / RECORD).apply(wanted, ())
    if failed:
        raise next(iter(failed.values()))
    return [file.path for file in wanted]


def take(state_dir: Path, files: Iterable[File]) -> None:
    """Remove some of the files that are installed. Try all, then raise the first error."""
    failed = FileDriver(state_dir / RECORD).apply((), list(files))
    if failed:
        raise next(iter(failed.values()))


def installed(state_dir: Path) -> list[File]:
    """Return the files that are installed."""
    return [s for s in FileDriver(state_dir / RECORD).observe(0) if isinstance(s, File)]


def remove(state_dir: Path) -> list[LinkspanError]:
    """Remove all installed files and our group; continue past errors and return them."""
    errors = []
    if has_own_group(state_dir):
        done = subprocess.run(["groupdel", GROUP], capture_output=True, text=True, check=False)
        if done.returncode:
            errors.append(LinkspanError(f"groupdel {GROUP}: {done.stderr.strip()}"))
    driver = FileDriver(state_dir / RECORD)
    files = [s for s in driver.observe(0) if isinstance(s, File)]
    return errors + list(driver.apply((), files).values())
