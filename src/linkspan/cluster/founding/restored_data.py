"""Data folder that is restored beside etcd's own: tried by an etcd that nobody else reaches, then exchanged."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from linkspan.cluster.founding import certificates, data_folder
from linkspan.cluster.founding.etcd_service import EtcdService, beside
from linkspan.cluster.founding.etcd_tools import Restorer, reset_root
from linkspan.cluster.founding.foundation import answers, authority, make_authorities, make_own, make_server
from linkspan.cluster.founding.trust_files import RECORDS_PREFIX, TrustFiles, Voter
from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.core.remedies import reason, remedy
from linkspan.kernel.io.durable_files import write
from linkspan.kernel.io.exchange import exchange, sync
from linkspan.kernel.io.private_files import apart
from linkspan.store.vault import Vault

PATIENCE, AGAIN = 60.0, 0.2
"""Seconds for the trial's first answer, and between two tries: a large database takes long to open."""
LIFE = 86400.0
"""Seconds for which the trial's certificates are valid: a large snapshot takes minutes."""
_SWAPPING = "swapping"
"""The file that is there from before the exchange on: then the data in this folder may be the former one."""
HERE = Voter("127.0.0.1")
"""Where the trial's etcd listens: no other host reaches it, and it takes nobody else's certificate."""


class RestoredData:
    """The folder beside ``service``'s, with all that a trial needs: files of trust, an etcd, and its data."""

    def __init__(self, service: EtcdService, host: str, clients: str = "") -> None:
        """``clients`` is ADDRESS:PORT of the voter's etcd: the trial has its own, and no host may take it for that."""
        self.folder = beside(service.folder)
        self.files = TrustFiles(self.folder)
        self._service = service
        self._host = host
        self._etcd = EtcdService(self.folder, host, HERE, clients)
        self._data = self._etcd.data
        self._swapping = self.folder / _SWAPPING

    async def discard(self) -> None:
        """End the trial, also one that was left by another agent, and remove the folder. Raises LinkspanError.

        If it was left during the exchange, the data in it may be the former one: it is renamed, as it would have been.
        """
        await asyncio.to_thread(self._discard)

    def _discard(self) -> None:
        self._etcd.stop()
        try:
            if self._swapping.exists() and self._data.exists():
                data_folder.keep_aside(self._data, self._service.data)
            if self.folder.exists():
                shutil.rmtree(self.folder)
        except OSError as error:
            raise _cannot(self.folder, error) from error

    def close(self) -> None:
        """Close the descriptors."""
        self._etcd.close()

    async def make(self, restorer: Restorer, snapshot: Path, peers: str, *, checked: bool) -> None:
        """Restore a snapshot; ``peers`` is the URL of the voter for other voters. Raises LinkspanError."""
        await self.discard()
        await asyncio.to_thread(self._prepare)
        name, token = self._service.name, secrets.token_hex(8)
        await asyncio.to_thread(restorer.restore, snapshot, self._data, name, peers, token, checked=checked)

    def _prepare(self) -> None:
        """Make the files of trust of the trial, which has authorities of its own."""
        apart(self.folder)
        make_authorities(self.files, self._etcd)
        make_server(self.files, self._etcd, HERE, LIFE)
        make_own(self.files, self._host, LIFE)

    @contextlib.asynccontextmanager
    async def serving(self, root: str) -> AsyncIterator[Vault]:
        """Serve the data, and give the vault as root, who gets the password ``root``. Raises LinkspanError."""
        self.files.put(self.files.root_password, root.encode() + b"\n")
        await self._etcd.start()
        vault = Vault(self.files.root_url([HERE.clients]), RECORDS_PREFIX)
        try:
            await self._let_in(root)
            await answers(vault, self._etcd)
            yield vault
        finally:
            await vault.close()
            await asyncio.to_thread(self._etcd.stop)

    async def _let_in(self, root: str) -> None:
        """Give root its password. What root's was in the snapshot does not matter then."""
        files, key = self.files, self.folder / "root.key"
        certificate = self.folder / "root.pem"
        trusted = authority(files, LIFE)
        private = certificates.new_key()
        files.put(key, private)
        files.put(certificate, trusted.root(private, datetime.datetime.now(datetime.UTC)))
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                await asyncio.to_thread(reset_root, HERE.clients, files.authority, certificate, key, root)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await self._etcd.start()  # it says why it ended
                await asyncio.sleep(AGAIN)
            else:
                return

    async def swap(self) -> str:
        """Exchange the data with those of the voter's etcd, which is stopped; return the former ones' new name.

        Raises LinkspanError; the voter has its former data then.
        """
        return await asyncio.to_thread(self._swap)

    def _swap(self) -> str:
        here = self._service.data
        try:
            self._give(self._service.owner())
            if not here.exists():
                self._data.rename(here)
                sync(here.parent)
                return ""
            write(self._swapping, b"")
            exchange(self._data, here)
            return str(data_folder.keep_aside(self._data, self._service.data))
        except OSError as error:
            raise _cannot(here, error) from error

    def _give(self, owner: tuple[int, int]) -> None:
        """Give the data to etcd's user. Nobody else reaches the folder, so no link is followed."""
        for path in (self._data, *self._data.rglob("*")):
            os.chown(path, *owner, follow_symlinks=False)


def _cannot(path: Path, error: OSError) -> LinkspanError:
    hint = remedy(error, path, "etcd's folder must be on one disk")
    return Unavailable(f"{path}: the restored data cannot be put there: {reason(error)}", hint)
