"""Factory of stores: opens the store of a URL, or reads the one that a host has for itself."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from linkspan.core.contracts import Store
from linkspan.core.store_url import check_url, sqlite_folder
from linkspan.store.sqlite import FILE, SqliteStore

if TYPE_CHECKING:
    from linkspan.store.etcd_maintenance import Maintenance

OWN = "store"
"""The folder in the state folder with the store of a host that is alone."""


def open_store(url: str, state_dir: Path, cluster: str = "") -> Store:
    """Return the store of a URL; an empty one is SQLite in the state folder.

    ``cluster`` is the id of the cluster that this host belongs to, where it knows: another one is refused.
    Raises Invalid for a URL that is not understood, Unavailable where a folder cannot be used. An etcd that
    does not answer is no error here: its calls raise Unavailable until it does.
    """
    check_url(url)
    if url.startswith("etcd://"):
        from linkspan.store.etcd import EtcdStore  # aiohttp's client costs 10 ms that SQLite does not need

        return EtcdStore(url, cluster)
    return SqliteStore(sqlite_folder(url) if url else state_dir / OWN, cluster=cluster)


def maintenance(store: Store, key: str) -> Maintenance | None:
    """Return how a store's servers are looked after, None for one that is files; ``key`` is that of a record."""
    if isinstance(store, SqliteStore):
        return None
    from linkspan.store.etcd import EtcdStore
    from linkspan.store.etcd_maintenance import Maintenance

    return Maintenance(store.gateway, key) if isinstance(store, EtcdStore) else None


def own_cluster(state_dir: Path) -> str:
    """Return the id of the store in the state folder, which a host has that is alone; '' without one."""
    return next(iter(_own(state_dir, "SELECT value FROM meta WHERE name = 'cluster'")), "")


def own_hosts(state_dir: Path) -> list[str]:
    """Return the ids of the hosts that the store in the state folder knows; it is the only one in there, as a rule."""
    keys = _own(state_dir, "SELECT key FROM entries WHERE key LIKE 'hosts/%' AND value IS NOT NULL")
    return [key.removeprefix("hosts/") for key in keys]


def _own(state_dir: Path, question: str) -> list[str]:
    """Return the texts that the store in the state folder answers; none where there is no store, or it is damaged."""
    file = state_dir / OWN / FILE
    if not file.is_file():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            return [str(row[0]) for row in database.execute(question)]
    except sqlite3.Error:  # whoever opens it to use it says what is wrong with it
        return []
