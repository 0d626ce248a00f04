"""Factory of stores: opens the store of a URL, or reads the store in the state folder."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from linkspan.core.store_contract import Store
from linkspan.core.store_url import check_url, sqlite_folder
from linkspan.store.sqlite import FILE, SqliteStore

if TYPE_CHECKING:
    from linkspan.store.etcd_maintenance import Maintenance, Root

OWN = "store"
"""Folder in the state folder: the store of a host without a shared one."""


def open_store(url: str, state_dir: Path, cluster: str = "") -> Store:
    """Return the store of a URL; '' means SQLite in the state folder.

    ``cluster`` is the id of the cluster that this host belongs to ('' if it does not know): a store of another
    cluster is refused. Any member of an etcd may be the first to be asked: a thousand hosts have the same URL, and
    would all be at one member otherwise. Raises Invalid if the URL cannot be parsed, and Unavailable if a folder
    cannot be used. An etcd that does not answer is no error here: its calls raise Unavailable until it answers.
    """
    check_url(url)
    if url.startswith("etcd://"):
        from linkspan.store.etcd import EtcdStore  # aiohttp's client costs 10 ms that SQLite does not need

        store = EtcdStore(url, cluster)
        store.gateway.endpoint = random.choice(store.url.endpoints)  # noqa: S311 - it spreads, and hides nothing
        return store
    return SqliteStore(sqlite_folder(url) if url else state_dir / OWN, cluster=cluster)


def maintenance(store: Store, key: str, root: Root | None = None) -> Maintenance | None:
    """Return the maintenance of a store's servers, None if it has none; ``key`` is a record's that may be read.

    ``root`` makes connections as etcd's root, if the store's user has not its role.
    """
    if isinstance(store, SqliteStore):
        return None
    from linkspan.store.etcd import EtcdStore
    from linkspan.store.etcd_maintenance import Maintenance

    return Maintenance(store.gateway, key, root) if isinstance(store, EtcdStore) else None


def own_cluster(state_dir: Path) -> str:
    """Return the cluster id of the store in the state folder; '' if there is no such store."""
    return next(iter(_own(state_dir, "SELECT value FROM meta WHERE name = 'cluster'")), "")


def own_hosts(state_dir: Path) -> list[str]:
    """Return the ids of the hosts in the store in the state folder: as a rule this host's alone."""
    keys = _own(state_dir, "SELECT key FROM entries WHERE key LIKE 'hosts/%' AND value IS NOT NULL")
    return [key.removeprefix("hosts/") for key in keys]


def _own(state_dir: Path, question: str) -> list[str]:
    """Return the first column of a query to the store in the state folder; none if it is missing or damaged."""
    file = state_dir / OWN / FILE
    if not file.is_file():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            return [str(row[0]) for row in database.execute(question)]
    except sqlite3.Error:  # `open_store` reports the damage
        return []
