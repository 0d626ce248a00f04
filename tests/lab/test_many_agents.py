"""Two dozen real agents that start at once on one store."""

from __future__ import annotations

import shutil

import pytest

from linkspan.lab import agents, build, processes, record, topology
from support import copies
from support.lab.lab_runs import LabRun
from support.polling import SHARED, until

MANY = 24
"""With more than 32 the kernel's one table of neighbours is full (1,024), for what other tests do meanwhile too."""


@pytest.mark.parametrize("store", ["sqlite", "etcd"])
def test_agents_that_start_at_once_get_blocks_without_a_duplicate(
    lab: LabRun, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has one block and no two have the same; each container has an address in its host's block."""
    if store == "etcd" and not shutil.which("etcd"):
        pytest.skip("needs etcd")
    monkeypatch.setattr(processes, "start", copies.start_of_lab)  # 24 real starts would be half of its time
    wishes = topology.Wishes(lab=lab.name, hosts=MANY, store=store, containers_per_host=1)
    build.up(topology.planned(wishes))  # not by the command line, which would try a thousand pairs
    made = record.load(lab.name)
    asked = agents.client(made, f"h{MANY}")

    def blocks() -> dict[str, str]:
        hosts = asked.call("GET", "/v1/hosts")
        return {block: h["name"] for h in hosts for lease in h["leases"] for block in lease["prefixes"]}

    until(lambda: len(set(blocks().values())) == MANY, "every host has a lease", 60 * SHARED)
    owners = blocks()
    assert len(owners) == MANY
    given = {c.name: (c.host, c.attachments[0].addresses[0]) for c in made.containers}
    assert len({address for _, address in given.values()}) == MANY
    for host, address in given.values():
        assert owners[address.rpartition(".")[0] + ".0/24"] == host
