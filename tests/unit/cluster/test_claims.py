"""Claims: a host follows only what concerns it, and says why it has no lease where it needs one."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkspan.core.model import Network
from linkspan.store.records import BlockRecord, Common, block_key
from support.records.membership_stage import MembershipStage
from support.records.peer_stage import one_link
from support.records.replicas import network, together

NETWORKS = tuple(
    network(name, f"10.{number}.0.0/23", backend="host-gw", options={}, gateways=(f"10.{number}.0.1",))
    for number, name in enumerate(("one", "two"), 1)
)


@pytest.fixture(autouse=True)
def link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a kernel that reaches all peers."""
    one_link(monkeypatch)


def _unasked() -> set[str]:
    """Return the networks with peers, for changes that are about none: to collect them takes a walk over all peers."""
    raise AssertionError("nothing asks which networks have peers")


async def _begun(folder: Path, *networks: Network) -> MembershipStage:
    stage = MembershipStage(folder)
    await stage.replica.start()
    await stage.replica.write({"hosts/h1": stage.hosts.here, **{f"networks/{one.name}": one for one in networks}})
    await stage.membership.converge({""})
    return stage


def test_a_host_follows_no_record_of_a_network_in_which_it_takes_no_part(tmp_path: Path) -> None:
    """But those of its own leases, of networks in which it still has a peer, and of everything else."""

    async def work() -> None:
        stage = await _begun(tmp_path, *NETWORKS)
        concerned = stage.claims.concerned
        foreign = {"leases/two/h2", "blocks/two/10.2.0.0/24", "addresses/two/10.2.1.9"}
        assert concerned(foreign, set) == set()
        assert concerned(foreign, lambda: {"two"}) == foreign
        others = {"leases/two/h1", "networks/two", "hosts/h2", "settings/hosts"}
        assert concerned(foreign | others, lambda: {"one"}) == others
        assert concerned({"alive/h2", "endpoints/h1/c1/eth0"}, _unasked) == set()
        await stage.replica.stop()

    together(work)


def test_a_lease_that_cannot_be_had_is_named_until_it_is_had(tmp_path: Path) -> None:
    """Its reason is that of the claim; a network in which the host takes part no more is not named."""

    async def work() -> None:
        stage = await _begun(tmp_path, *NETWORKS)
        taken = {block_key("two", f"10.2.{number}.0/24"): BlockRecord("h2", 0.0) for number in range(2)}
        await stage.replica.write({**taken, "settings/hosts": Common({"networks": "one,two"})})
        await stage.membership.converge({""})
        assert set(stage.claims.refused) == {"two"}
        assert stage.claims.pending
        await stage.replica.write({}, deletes=[block_key("two", "10.2.1.0/24")])
        await stage.membership.converge({""})
        assert stage.claims.refused == {}
        assert {lease.network for lease in stage.leases.own()} == {"one", "two"}
        await stage.replica.stop()

    together(work)
