"""Voters: three hosts have three by themselves, the loss of any is borne, and dead ones are replaced."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from linkspan.agent import voters
from linkspan.cluster.founding import join_token
from linkspan.cluster.founding.revocation import OFF
from linkspan.core.store_url import OWN_CLIENTS
from support.lab.bare_runs import BareRun
from support.polling import SHARED, until

WRITES_WITHIN = 5.0 * SHARED
"""Seconds: the promise is 5."""
FORGOTTEN_WITHIN = 20.0 * SHARED
"""Seconds in which two voters restart their etcd in turn, each with an election."""


@pytest.fixture
def bare() -> Iterator[BareRun]:
    """Give bare hosts, as many as a test makes."""
    found = BareRun()
    try:
        yield found
    finally:
        found.run("down")


def three(bare: BareRun, hosts: int = 3) -> str:
    """Make a cluster whose first three hosts are its voters, of so many hosts; return the token."""
    bare.up(hosts)
    token = bare.init()
    bare.hurry()
    for number in (2, 3):
        bare.join(f"h{number}", token)
    bare.voters("h1", "h2", "h3")
    for number in range(4, hosts + 1):
        bare.join(f"h{number}", token)
    return token


def writes(bare: BareRun, host: str) -> bool:
    """Change something that all hosts know, by a host's agent; return whether it was done."""
    try:
        bare.exec(host, f"linkspan host set --all networks={'all' if int(time.time()) % 2 else ''}")
    except AssertionError:
        return False
    return True


def test_three_hosts_have_three_voters_and_bear_the_loss_of_one(bare: BareRun) -> None:
    """Nobody asked for it: clients know all voters without a restart, tokens name them, and any host may vanish."""
    three(bare)
    for host in ("h1", "h2", "h3"):
        until(lambda host=host: "192.0.2.3" in (bare.folder / host / "agent.toml").read_text(), f"{host} knows all")
        assert bare.files(host).root_password.exists()
    assert "1 of 3 voters may be lost" in bare.exec("h2", "linkspan cluster members")
    bare.exec("h1", "linkspan network create demo --pool 10.244.0.0/16 --backend vxlan")
    for number in (1, 2, 3):
        bare.run("attach", f"h{number}", f"c{number}")
    until(lambda: bare.pings("c2", bare.address("c3")), "c2 reaches c3")
    bare.run("break", "h1", "link-down")
    until(lambda: writes(bare, "h2"), "h2 changes something without h1", WRITES_WITHIN)
    assert bare.pings("c2", bare.address("c3"))
    assert "none may be lost" in bare.exec("h2", "linkspan cluster members")
    token = bare.token(host="h2")
    assert token["token"]
    bare.run("mend", "h1")
    bare.voters("h1", "h2", "h3", asked="h2")


def test_a_dead_voter_is_replaced_by_a_living_host_and_comes_back_as_a_client(bare: BareRun) -> None:
    """Also if it was the leader's host; its data folder of before is renamed, and it may be promoted again."""
    three(bare, 4)
    for pid in (*bare.agents("h3"), *bare.own_etcd("h3")):
        os.kill(pid, signal.SIGKILL)
    bare.voters("h1", "h2", "h4")
    bare.run("mend", "h3")
    until(lambda: bare.roles().get("h3") == "client", "h3 is back as a client")
    until(lambda: bare.files("h3").voter() is None, "h3 has ended its etcd")
    state = bare.folder / "h3" / "state"
    assert not bare.files("h3").root_password.exists()
    assert not bare.files("h3").authority_key.exists()
    assert not bare.own_etcd("h3")
    assert (state / "etcd" / "data.before").exists()
    assert "demote HOST first" in bare.refused("h1", "cluster promote h3")
    bare.exec("h1", "linkspan cluster demote h4")
    bare.exec("h1", "linkspan cluster promote h3")
    bare.voters("h1", "h2", "h3")


def test_a_voter_leaves_and_the_last_one_does_not(bare: BareRun) -> None:
    """A host that left is alone, with another id, and may join again; its addresses are free."""
    token = three(bare)
    bare.exec("h1", "linkspan network create demo --pool 10.244.0.0/16 --backend vxlan")
    bare.run("attach", "h3", "c3")
    id_ = bare.host_id("h3")
    refused = bare.refused("h3", "cluster leave")
    assert "1 endpoint of the cluster's networks live" in refused
    bare.exec("h3", "linkspan cluster leave --force")
    until(lambda: bare.roles().keys() == {"h1", "h2"}, "h3 is gone")
    assert "in no cluster" in bare.refused("h3", "cluster members")
    assert json.loads(bare.exec("h3", "linkspan endpoint list -o json")) == []
    assert json.loads(bare.exec("h3", "linkspan network list -o json")) == []
    assert not bare.own_etcd("h3")
    assert bare.host_id("h3") != id_
    assert id_ not in bare.own_etcdctl("user list").stdout
    until(lambda: sorted(bare.roles().values()) == ["client", "voter"], "two hosts have one voter")
    (last,) = [host for host, role in bare.roles().items() if role == "voter"]
    assert "it is the last voter" in bare.refused(last, "cluster leave")
    bare.join("h3", token)
    until(lambda: bare.roles(last).keys() == {"h1", "h2", "h3"}, "h3 is back")


def test_a_voter_that_nobody_trusts_any_more_is_forgotten(bare: BareRun) -> None:
    """It is taken out of etcd, and every voter refuses its certificate; two of three dead cannot be taken out."""
    three(bare)
    bare.run("break", "h3", "agent-kill")
    watch = [*bare.etcdctl_words("h3", "h3")]
    bare.exec("h1", "linkspan cluster forget h3")
    assert bare.roles().keys() == {"h1", "h2"}
    for voter in ("1", "2"):
        words = [*watch, "--endpoints", f"https://192.0.2.{voter}:{OWN_CLIENTS}", "get", "/linkspan/", "--prefix"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert not done.stdout
    until(lambda: not bare.own_etcd("h3"), "the etcd of h3 has ended")


def test_a_voter_stays_one_until_it_has_forgotten_a_host(bare: BareRun) -> None:
    """Two hosts need one voter, and the one that is asked would be taken out: etcd's leader is the other one.

    It ends what it began, and then the cluster takes it out. The same command may be typed again on the voter that is
    left.
    """
    three(bare)
    found = json.loads(bare.own_etcdctl("member list -w json").stdout)["members"]
    ids = {one["name"].removeprefix("voter-"): one["ID"] for one in found}
    moved = bare.own_etcdctl(f"move-leader {ids[bare.host_id('h2')]:x}")
    assert "transferred" in moved.stdout, moved.stderr
    begun = time.monotonic()
    told = json.loads(bare.exec("h1", "linkspan cluster forget h3 -o json"))
    assert (told["forgotten"], told["removed"]) == ("h3", True)
    assert time.monotonic() - begun < FORGOTTEN_WITHIN
    until(lambda: sorted(bare.roles("h2").values()) == ["client", "voter"], "two hosts have one voter")
    (last,) = [host for host, role in bare.roles("h2").items() if role == "voter"]
    told = json.loads(bare.exec(last, f"linkspan cluster forget {told['id']} -o json"))
    assert (told["forgotten"], told["removed"]) == ("h3", False)


def test_a_voter_whose_agent_is_off_does_not_hold_up_a_forget(bare: BareRun) -> None:
    """Its etcd keeps connections that the host had opened: the command says so soon, and what to do."""
    three(bare)
    bare.run("break", "h2", "agent-kill")
    until(lambda: bare.call("h1", "GET", "/v1/hosts/h2")["state"] != "alive", "h1 knows that h2 is off")
    begun = time.monotonic()
    refused = bare.refused("h1", "cluster forget h3")
    assert "still open at h2: the agent there does not run; start it; then type the same again" in refused
    assert time.monotonic() - begun < FORGOTTEN_WITHIN + OFF
    bare.run("mend", "h2")
    until(lambda: bare.call("h1", "GET", "/v1/hosts/h2")["state"] == "alive", "h1 knows that h2 is back")
    bare.exec("h1", "linkspan cluster forget h3")
    assert bare.roles().keys() == {"h1", "h2"}


def killed_at(bare: BareRun, host: str, there: Callable[[], bool], what: str) -> None:
    """Kill a host's agent as soon as something is there; its etcd goes on."""
    until(there, what)
    for pid in bare.agents(host):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not bare.agents(host), f"the agent of {host} has ended")
    bare.run("mend", host)


def test_a_promotion_that_was_killed_at_any_step_is_taken_up_again(bare: BareRun) -> None:
    """On the host that becomes a voter, and on the one that decides."""
    bare.up()
    token = bare.init()
    bare.hurry(evict_after=20.0)
    bare.join("h2", token)
    bare.join("h3", token)
    state = bare.folder / "h2" / "state"
    for name in ("cluster/client-ca.key", "etcd/server.pem", "etcd/data/linkspan.json", "cluster/voter.json"):
        killed_at(bare, "h2", (state / name).exists, f"h2 has {name}")
    killed_at(bare, "h1", lambda: bare.roles("h2").get("h2") in ("learner", "voter"), "h2 is in etcd")
    bare.voters("h1", "h2", "h3")


def test_a_copied_or_lost_data_folder_is_not_used(bare: BareRun) -> None:
    """The voter says so and waits; demoted and promoted it gets the records again."""
    three(bare)
    own, others = (bare.folder / host / "state" / "etcd" / "data" for host in ("h3", "h2"))
    for pid in (*bare.agents("h3"), *bare.own_etcd("h3")):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(own)
    shutil.copytree(others, own)
    bare.run("mend", "h3")
    log = bare.folder / "h3" / "agent.log"
    until(lambda: "is a copy of the data of host" in log.read_text(), "h3 says whose data it has")
    why = "this voter's etcd does not run: "
    until(lambda: any(one.startswith(why) for one in bare.status("h3")["drift"]), "so does its status")
    shutil.rmtree(own)
    assert not bare.own_etcd("h3")
    bare.run("break", "h3", "agent-kill")
    bare.run("mend", "h3")
    until(lambda: "the data of this voter is gone" in log.read_text(), "h3 says that it has no data")
    assert not bare.own_etcd("h3")
    bare.exec("h1", "linkspan cluster demote h3")
    bare.exec("h2", "linkspan cluster promote h3")
    bare.voters("h1", "h2", "h3")


def test_hosts_join_while_the_first_one_is_away(bare: BareRun) -> None:
    """By a token that names all voters, two at once; the first one's own token names only itself."""
    bare.up(5)
    first = bare.init()
    bare.hurry()
    for host in ("h2", "h3"):
        bare.join(host, first)
    bare.voters("h1", "h2", "h3")
    until(lambda: len(join_token.parsed(bare.token(host="h2")["token"]).signers) == 3, "a token names all voters")
    token = bare.token(host="h2")["token"]
    bare.run("break", "h1", "link-down")
    assert "192.0.2.1:5381 cannot be reached" in bare.refused("h4", f"cluster join {first}")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert [*pool.map(lambda host: bare.join(host, token)["host"], ("h4", "h5"))] == ["h4", "h5"]


def test_a_voter_whose_address_changed_goes_on(bare: BareRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its etcd listens at the new one, with certificates for it, and all others learn of that.

    It waits a minute for the old one (tests/unit/agent/test_voter_moves.py), and less in an agent that is a copy.
    """
    three(bare)
    if SHARED > 1:
        monkeypatch.setattr(voters, "MOVE_AFTER", 5.0)
        bare.run("break", "h3", "agent-kill")
        bare.run("mend", "h3")
    bare.ip("h3", "addr del 192.0.2.3/24 dev eth0")
    bare.ip("h3", "addr add 192.0.2.33/24 dev eth0")
    for host in ("h1", "h2", "h3"):
        settings = bare.folder / host / "agent.toml"
        within = voters.MOVE_AFTER + 60 * SHARED
        until(lambda file=settings: "192.0.2.33" in file.read_text(), f"{host} knows the new address", within)
    bare.voters("h1", "h2", "h3")
    assert "192.0.2.3:5379" not in (bare.folder / "h1" / "agent.toml").read_text()
