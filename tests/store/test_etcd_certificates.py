"""The etcd store takes certificates that are renewed while it runs, and its open streams stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from linkspan.core.errors import Unavailable
from linkspan.store.etcd import EtcdStore
from support.certificates import Authority, Pair
from support.polling import eventually
from support.store.engines import Watched
from support.store.etcd_members import Members

pytestmark = pytest.mark.root


async def test_new_files_are_used_at_once_and_no_watch_ends(tmp_path: Path) -> None:
    """Between the certificate and its key, which an operator writes one after the other, the last pair stays in use."""
    authority = Authority(tmp_path / "ca")
    server, first, second = (authority.certificate(name) for name in ("server", "first", "second"))
    forged = Authority(tmp_path / "stranger").certificate("client")
    used = Pair(str(tmp_path / "used.pem"), str(tmp_path / "used.key"))
    options = ("--cert-file", server.cert, "--key-file", server.key, "--client-cert-auth")
    login = ("--cacert", authority.cert, "--cert", first.cert, "--key", first.key)

    def put(pair: Pair) -> None:
        shutil.copy(pair.cert, used.cert)
        shutil.copy(pair.key, used.key)

    with Members.started(1, (*options, "--trusted-ca-file", authority.cert), login) as members, members.inside():
        put(first)
        store = EtcdStore(members.url("/c", f"?ca={authority.cert}&cert={used.cert}&key={used.key}"))
        _, revision = await store.list("")
        watched = Watched(store, "", revision)
        await store.transaction({"a": b"1"})
        await watched.has({"a": b"1"})
        (stream,) = store.gateway.streams
        shutil.copy(second.cert, used.cert)
        await store.transaction({"a": b"2"})
        put(second)
        await store.transaction({"a": b"3"})
        put(forged)  # etcd refuses it: so it was shown
        with pytest.raises(Unavailable, match="refuses our certificate"):
            await store.get("a")
        put(second)
        await store.transaction({"a": b"4"})
        await watched.has({"a": b"4"})
        assert store.gateway.streams == {stream}
        await eventually(lambda: watched.proofs > 1, "the watch proves that it lives")
        await store.close()
