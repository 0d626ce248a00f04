"""Removal of linkspan's own etcd from a machine, for `uninstall`: the process, its data, and the setting `store`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

from linkspan.agent.settings_file import drop_store
from linkspan.cluster.founding import etcd_service
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.core.config import Config
from linkspan.core.errors import LinkspanError
from linkspan.store.snapshot import SNAPSHOT, remembered


def _voter(config: Config) -> Voter | None:
    with contextlib.suppress(LinkspanError):  # damaged: the folders are removed all the same
        return TrustFiles(Path(config.state_dir)).voter()
    return None


def dependants(config: Config) -> int:
    """Return how many other hosts have their records in this host's etcd."""
    if _voter(config) is None:
        return 0
    known = remembered(Path(config.state_dir) / SNAPSHOT)
    return len({key for key in known.records if key.startswith("hosts/")} - {f"hosts/{known.host}"})


def preview(config: Config) -> list[str]:
    """Return what ``remove`` would remove."""
    voter = _voter(config)
    if voter is None:
        return []
    return [f"etcd at {voter.clients}", *([str(etcd_service.UNIT_FOLDER)] if voter.systemd else [])]


def remove(config: Config, file: Path) -> list[str]:
    """End etcd and remove what is outside the state folder; return what was removed.

    ``uninstall`` has disabled the unit before, and the agent has ended. Raises LinkspanError.
    """
    state_dir, voter, removed = Path(config.state_dir), _voter(config), preview(config)
    if TrustFiles(state_dir).owns(config.store):
        drop_store(file, config.store)
    if voter is None:
        return removed
    with contextlib.closing(EtcdService(state_dir, "", voter)) as service:
        service.stop()
    if voter.systemd:
        shutil.rmtree(etcd_service.UNIT_FOLDER, ignore_errors=True)
        subprocess.run(["userdel", etcd_service.USER], capture_output=True, check=False)
    return removed
