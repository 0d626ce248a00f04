"""Removal of linkspan's own etcd from a machine, for `uninstall`: the process, its data, and the setting `store`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import msgspec

from linkspan.agent import installation
from linkspan.agent.settings_file import drop_store
from linkspan.cluster.founding import etcd_service
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.core.config import Config
from linkspan.core.errors import LinkspanError, counted
from linkspan.core.store_url import etcd_parts
from linkspan.store.snapshot import SNAPSHOT, remembered


def _voter(config: Config) -> Voter | None:
    """Return this host's part as a voter; without an address if the file that says so is damaged or missing."""
    state_dir = Path(config.state_dir)
    with contextlib.suppress(LinkspanError):
        if (voter := TrustFiles(state_dir).voter()) is not None:
            return voter
    unit = any(Path(file.path).name == etcd_service.UNIT_NAME for file in installation.installed(state_dir))
    return Voter("", systemd=unit) if unit or (state_dir / etcd_service.HELPER_FOLDER / "data").exists() else None


class Needed(msgspec.Struct, frozen=True):
    """A need of others for this host's etcd: why, what to do first, and what the removal does to them otherwise."""

    why: str
    fix: str
    forced: str


def needed(config: Config) -> Needed | None:
    """Return why others need this host's etcd, None if nobody does."""
    voter, state_dir = _voter(config), Path(config.state_dir)
    if voter is None or not (etcd_service.folder(state_dir, voter) / "data").exists():
        return None
    ends, known = "ends the cluster's etcd for good", remembered(state_dir / SNAPSHOT)
    if not known.cluster:
        why = "etcd runs here, and which other hosts have their records in it cannot be read"
        return Needed(why, "uninstall them first", ends)
    others = len({key for key in known.records if key.startswith("hosts/")} - {f"hosts/{known.host}"})
    voters = len(etcd_parts(config.store).endpoints) if TrustFiles(state_dir).owns(config.store) else 1
    if others and voters > 1:
        why = f"this host is one of {voters} voters of its cluster"
        return Needed(why, "let it leave first: linkspan cluster leave", "leaves the cluster with a dead voter")
    if others:
        why = f"{counted(others, 'other host')} of the cluster {'has' if others == 1 else 'have'} etcd here"
        return Needed(why, "uninstall them first (or `linkspan cluster forget` each)", ends)
    return None


def preview(config: Config) -> list[str]:
    """Return what ``remove`` would remove."""
    voter = _voter(config)
    if voter is None:
        return []
    etcd = f"etcd at {voter.clients}" if voter.address else "etcd"
    return [etcd, *([str(etcd_service.UNIT_FOLDER)] if voter.systemd else [])]


def remove(config: Config, file: Path) -> list[str]:
    """End etcd and remove what is outside the state folder; return what was removed.

    ``uninstall`` has disabled the unit before, and the agent has ended. Raises LinkspanError.
    """
    state_dir, voter, removed = Path(config.state_dir), _voter(config), preview(config)
    ours = TrustFiles(state_dir).owns
    if ours(config.store):  # a file that cannot be read may have no store of ours, and stays
        drop_store(file, ours)
    if voter is None:
        return removed
    with contextlib.closing(EtcdService(state_dir, "", voter)) as service:
        service.stop()
        trial = etcd_service.beside(service.folder)
    with contextlib.closing(EtcdService(trial, "", Voter(""))) as service:  # of a restore that was killed
        service.stop()
    if voter.systemd:
        shutil.rmtree(trial, ignore_errors=True)
        shutil.rmtree(etcd_service.UNIT_FOLDER, ignore_errors=True)
        subprocess.run(["userdel", etcd_service.USER], capture_output=True, check=False)
    return removed
