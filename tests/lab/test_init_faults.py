"""Faults of `cluster init` and `cluster join`: killed at each step and repeated, and wrong places and arguments."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest

from linkspan.lab import inside, record
from support.lab.bare_runs import BareRun
from support.lab.cluster_runs import ClusterRun
from support.lab.lab_runs import COMMAND
from support.polling import SHARED, until


@pytest.fixture
def bare() -> Iterator[BareRun]:
    """Give two bare hosts."""
    found = BareRun()
    try:
        found.up(2)
        yield found
    finally:
        found.run("down")


@pytest.mark.parametrize(
    "step", ["cluster/voter.json", "cluster/peer-ca.pem", "etcd/revoked.der", "cluster/host.pem", "etcd/data", "+auth",
             "+setting", "store.moved"],
)  # fmt: skip
def test_an_init_that_was_killed_can_be_repeated(bare: BareRun, step: str) -> None:
    """The second init finishes what the first had begun: network and container of before are in it, and others join."""
    bare.run("mend", "h1")
    bare.exec("h1", "linkspan network create demo --pool 10.244.0.0/16 --backend vxlan")
    bare.run("attach", "h1", "c1")
    state, settings = bare.folder / "h1" / "state", bare.folder / "h1" / "agent.toml"
    reached: dict[str, Callable[[], bool]] = {
        "+auth": lambda: (state / "etcd/data").exists() and "host-" in bare.own_etcdctl("user list").stdout,
        "+setting": lambda: "etcd://" in settings.read_text(),
    }
    there = reached.get(step, (state / step).exists)
    bare.killed("h1", "cluster init", there)
    assert there()
    token = bare.init()
    assert bare.members() == {"h1": "voter"}
    bare.join("h2", token)
    bare.run("attach", "h2", "c2")
    until(lambda: bare.pings("c1", bare.address("c2")), "c1 reaches c2")
    assert [one["name"] for one in json.loads(bare.exec("h2", "linkspan network list -o json"))] == ["demo"]


def test_an_agent_whose_own_store_cannot_be_moved_says_so_and_goes_on(bare: BareRun) -> None:
    """The store of before init is damaged: `status` names it, init finds the agent that waits, and both go on."""
    bare.init()
    bare.run("break", "h1", "agent-kill")
    file = bare.folder / "h1" / "state" / "store" / "store.db"
    file.parent.mkdir()
    file.write_text("damaged")

    def said() -> bool:
        try:
            return f"{file}, cannot be read" in bare.exec("h1", "linkspan status", code=3)
        except AssertionError:  # the agent has not begun yet
            return False

    lab = record.load(bare.name)
    argv = inside.command(lab, "h1", [*COMMAND[:-1], "cluster", "init"])
    with subprocess.Popen(argv, env=inside.environment(lab, "h1"), stderr=subprocess.DEVNULL) as process:
        until(said, "status names the store", 10 * SHARED)
        assert len(bare.agents("h1")) == 1
        file.rename(file.with_suffix(".away"))
        assert process.wait(100) == 0
    assert bare.members() == {"h1": "voter"}


def test_a_join_that_was_killed_can_be_repeated_with_the_same_token(bare: BareRun) -> None:
    """After each step, with a token for one host; then the host may also be forgotten and join again."""
    bare.init()
    token = bare.token("--uses 1")["token"]
    state, settings = bare.folder / "h2" / "state", bare.folder / "h2" / "agent.toml"
    steps: tuple[Callable[[], bool], ...] = (
        *((state / "cluster" / name).exists for name in ("host.key", "client-ca.pem", "host.pem", "password")),
        lambda: "etcd://" in settings.read_text(),
    )
    for there in steps:
        bare.killed("h2", f"cluster join {token}", there)
    assert bare.join("h2", token)["host"] == "h2"
    until(lambda: bare.members() == {"h1": "voter", "h2": "client"}, "h2 is a member")


def test_a_half_joined_host_can_be_forgotten_and_join_again(bare: BareRun) -> None:
    """Its settings could not be written: it has a user and a certificate, and no record, so its id is not spent."""
    token = bare.init()
    bare.run("mend", "h2")
    settings = bare.folder / "h2" / "agent.toml"
    sound = settings.read_text()
    settings.write_text(f"{sound}no setting\n")
    assert "write this line into" in bare.refused("h2", f"cluster join {token}")
    assert bare.members() == {"h1": "voter"}
    settings.write_text(sound)
    bare.exec("h1", "linkspan cluster forget h2")
    assert "is revoked" in bare.refused("h2", f"cluster join {token}")
    assert bare.join("h2", bare.token()["token"])["host"] == "h2"
    until(lambda: bare.members() == {"h1": "voter", "h2": "client"}, "h2 is a member")


def test_init_refuses_an_address_that_is_not_the_hosts_and_wrong_arguments(bare: BareRun) -> None:
    """Nothing is made then."""
    assert "no address of this host" in bare.refused("h1", "cluster init --advertise 203.0.113.9")
    assert "203.0.113" in bare.refused("h1", "cluster init --advertise 203.0.113.x")
    assert not (bare.folder / "h1" / "state" / "cluster").exists()
    assert "is in no cluster that linkspan founded" in bare.refused("h1", "cluster token create")
    assert "in no cluster" in bare.refused("h1", "cluster members")
    assert "in no cluster" in bare.refused("h1", "cluster forget h2")
    bare.init()
    assert "chose the address 192.0.2.1" in bare.refused("h1", "cluster init --advertise 192.0.2.2")
    for options in ("--ttl 1y", "--ttl 0s", "--ttl 367d", "--ttl -1h", "--uses 1000001"):
        bare.refused("h1", f"cluster token create {options}")
    bare.exec("h1", "linkspan cluster token create --uses -1", code=2)


def test_a_host_that_two_clusters_want_stays_in_the_first(bare: BareRun) -> None:
    """One with networks of its own is refused, before the secret is sent."""
    token = bare.init()
    bare.run("mend", "h2")
    bare.exec("h2", "linkspan network create mine --pool 10.9.0.0/16 --backend bridge")
    assert "networks of its own" in bare.refused("h2", f"cluster join {token}")
    assert not bare.files("h2").key.exists()
    bare.exec("h2", "linkspan network delete mine")
    assert bare.join("h2", token)["host"] == "h2"


def test_init_and_join_do_not_touch_an_etcd_of_the_operators() -> None:
    """They are refused with the reason, and the cluster goes on."""
    found = ClusterRun()
    try:
        found.run("up", "--store etcd --hosts 2")
        keys = found.keys("")
        for command in ("cluster init", "cluster members", "cluster token list"):
            error = json.loads(found.exec("h1", f"linkspan {command} -o json", code=1))["error"]
            assert "which linkspan did not start" in error["message"] or "linkspan founded" in error["message"]
        assert {key for key in found.keys("") if "upkeep" not in key} == {key for key in keys if "upkeep" not in key}
        assert not (found.folder / "h1" / "state" / "cluster").exists()
    finally:
        found.run("down")
