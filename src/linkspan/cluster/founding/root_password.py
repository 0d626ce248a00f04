"""Root's password of etcd: all voters change it together, at the end of a rotation of authorities.

A host that was a voter knows the former one, and so does whoever has a copy of a voter's disk. Each voter gets the next
one with the rotation's new keys, and has both until the end. Then one of them changes it in etcd. A voter that etcd
refuses from then on uses the other of its two. So whoever is killed at any moment has the password that etcd takes.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets

from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import Unavailable
from linkspan.core.remedies import reason
from linkspan.kernel.io.exchange import exchange
from linkspan.kernel.io.private_files import alone
from linkspan.store.vault import Vault


def new() -> str:
    """Return a random password."""
    return secrets.token_urlsafe(24)


def digest(password: str) -> str:
    """Return the SHA-256 of a password (hex). It has 192 random bits, so nobody can guess it from that."""
    return hashlib.sha256(password.encode()).hexdigest()


def keep_next(files: TrustFiles, password: str) -> None:
    """Keep the next password ('': none) beside the one that is in use. Raises LinkspanError."""
    if password and alone(str(files.root_password)).decode() != password:
        files.put(files.other_root_password, password.encode() + b"\n")


async def change(files: TrustFiles, vault: Vault, wanted: str) -> None:
    """Give etcd's root the next password, whose digest is ``wanted`` ('': none).

    It may be repeated. Raises LinkspanError.
    """
    if not wanted or digest((await asyncio.to_thread(alone, str(files.root_password))).decode()) == wanted:
        return
    password = (await asyncio.to_thread(alone, str(files.other_root_password))).decode()
    if digest(password) != wanted:
        raise Unavailable(f"{files.other_root_password} is not the password that voters agreed on", "remove it")
    await vault.change_root(password)
    await asyncio.to_thread(exchanged, files)


def exchanged(files: TrustFiles) -> bool:
    """Use the other password from now on; return whether there is one. Raises LinkspanError."""
    if not files.other_root_password.exists():
        return False
    exchange(files.root_password, files.other_root_password)
    return True


def drop_other(files: TrustFiles) -> None:
    """Remove the password that is not in use, if there is one. Raises Unavailable with its name."""
    try:
        files.other_root_password.unlink(missing_ok=True)
    except OSError as error:
        raise Unavailable(f"{files.other_root_password}: {reason(error)}", "remove it") from error
