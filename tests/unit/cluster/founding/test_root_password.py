"""Root's password of etcd: all voters have the one that etcd takes, whoever is killed while it changes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from linkspan.cluster.founding import root_password
from linkspan.cluster.founding.authority_plan import CLIENTS, DROP, ROTATION, RotationRecord
from linkspan.cluster.founding.authority_rotation import AuthorityRotation
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.core.errors import Unavailable
from linkspan.kernel.io.private_files import alone
from linkspan.store.etcd_errors import Refused
from linkspan.store.vault import Vault
from support.fake_voters import Voters

OLD, NEW = "old", "new"


class Cluster:
    """Two voters that have carried out the last step of a rotation, and what etcd takes for root's password."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.vault = Voters(monkeypatch, ("1", "2")).vault
        self.taken = OLD
        self.files = {host: TrustFiles(folder / host) for host in ("1", "2")}
        for one in self.files.values():
            one.put(one.root_password, f"{OLD}\n".encode())
            root_password.keep_next(one, NEW)
        real = Vault.get

        async def get(vault: Vault, key: str, kind: Any) -> Any:
            """Ask as the voter whose turn it is."""
            if self.uses(self.asking) != self.taken:
                raise Refused(f"user root is refused: wrong name, or wrong password in {key}", "", 3)
            return await real(vault, key, kind)

        async def change_root(_vault: Vault, password: str) -> None:
            self.taken = password

        self.asking = "1"
        monkeypatch.setattr(Vault, "get", get)
        monkeypatch.setattr(Vault, "change_root", change_root)

    def uses(self, host: str) -> str:
        """Return the password that a voter uses."""
        return alone(str(self.files[host].root_password)).decode()

    async def begin(self) -> None:
        """Write down the rotation."""
        one = RotationRecord(
            id="r", step=DROP, begun=0, authorities={CLIENTS: ""}, sealed="", root=root_password.digest(NEW),
            done=("1", "2"), told=True,
        )  # fmt: skip
        await self.vault.put({ROTATION: (one, 0)})

    async def look(self, host: str) -> bool:
        """Let a voter look once; return whether it saw a rotation."""
        self.asking, files = host, self.files[host]
        own = EtcdService(files.state_dir, host, Voter(f"192.0.2.{host}"))
        return await AuthorityRotation(files, self.vault, own, Voter(""), host, 99, lambda: None).look()

    async def ends(self, host: str) -> None:
        """Let a voter look until it sees no rotation."""
        for _ in range(4):
            if not await self.look(host):
                return
        raise AssertionError(f"voter {host} sees no end")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    """Give two voters."""
    return Cluster(monkeypatch, tmp_path)


def test_one_voter_changes_it_and_the_other_follows(cluster: Cluster) -> None:
    """At the end nobody has the former one any more."""

    async def run() -> None:
        await cluster.begin()
        for host in ("1", "2"):
            await cluster.ends(host)

    asyncio.run(run())
    assert (cluster.taken, cluster.uses("1"), cluster.uses("2")) == (NEW, NEW, NEW)
    assert not any(one.other_root_password.exists() for one in cluster.files.values())


@pytest.mark.parametrize("exchanged", [False, True])
def test_an_agent_that_ends_in_between_goes_on(cluster: Cluster, *, exchanged: bool) -> None:
    """After etcd has the new one, before or after the files have, and before the rotation's record is gone."""
    cluster.taken = NEW
    if exchanged:
        root_password.exchanged(cluster.files["1"])

    async def run() -> None:
        await cluster.begin()
        await cluster.ends("1")

    asyncio.run(run())
    assert (cluster.taken, cluster.uses("1")) == (NEW, NEW)
    assert not cluster.files["1"].other_root_password.exists()


def test_a_rotation_that_a_restore_ended_leaves_what_etcd_takes(cluster: Cluster) -> None:
    """The password that was to come is removed."""
    assert not asyncio.run(cluster.look("1"))
    assert cluster.uses("1") == OLD
    assert not cluster.files["1"].other_root_password.exists()


def test_another_password_than_the_agreed_one_is_not_given_to_etcd(cluster: Cluster) -> None:
    """Somebody changed the file."""
    files = cluster.files["1"]
    files.put(files.other_root_password, b"else\n")
    with pytest.raises(Unavailable, match="is not the password that voters agreed on"):
        asyncio.run(root_password.change(files, cluster.vault, root_password.digest(NEW)))
    assert cluster.taken == OLD


def test_beside_a_voter_of_the_release_before_the_password_stays(cluster: Cluster) -> None:
    """That voter's record of the rotation has no password."""
    asyncio.run(root_password.change(cluster.files["1"], cluster.vault, ""))
    assert cluster.uses("1") == cluster.taken == OLD
