"""systemd's unit of a voter's etcd, and the user that it runs as."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from linkspan.agent import installation
from linkspan.cluster.founding import etcd_service
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.trust_files import Voter
from linkspan.core.errors import LinkspanError
from linkspan.core.states.programs import File
from linkspan.runtimes import systemd

ETCD_UNIT = f"{systemd.UNITS}/{etcd_service.UNIT_NAME}"
ETCD_USER = "etc/sysusers.d/linkspan-etcd.conf"


class EtcdUnit:
    """The unit on this host, which has it while it is a voter and systemd runs its services."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self.systemd = systemd.restarts()
        """True if systemd runs this host's services."""

    def install(self, voter: Voter, service: EtcdService) -> None:
        """Install etcd's unit and its user if systemd runs it. Raises LinkspanError."""
        if not voter.systemd:
            return
        installation.put(self._state_dir, unit_files(service))
        for words in (
            ("systemd-sysusers", f"/{ETCD_USER}"),
            ("systemctl", "daemon-reload"),
            ("systemctl", "enable", etcd_service.UNIT_NAME),
        ):
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise LinkspanError(f"{' '.join(words)}: {done.stderr.strip() or f'it ended with {done.returncode}'}")

    def uninstall(self) -> None:
        """Remove etcd's unit and its user's file; the user stays for the data that are kept. Raises LinkspanError."""
        ours = (f"/{ETCD_UNIT}", f"/{ETCD_USER}")
        files = [one for one in installation.installed(self._state_dir) if one.path in ours]
        installation.take(self._state_dir, files)
        if files:
            subprocess.run(("systemctl", "daemon-reload"), capture_output=True, check=False)


def unit_files(service: EtcdService) -> Iterator[File]:
    """Return etcd's user and its unit, for systemd. Raises NotFound if there is no etcd."""
    yield File(f"/{ETCD_USER}", etcd_service.sysusers().encode())
    yield File(f"/{ETCD_UNIT}", etcd_service.unit(_line(service.argv()), _line(service.condition())).encode())


def _line(argv: Iterable[str]) -> str:
    return " ".join(map(systemd.quoted, argv))
