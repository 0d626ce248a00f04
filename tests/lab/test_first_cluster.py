"""A cluster in three commands: `cluster init` and `cluster join` on bare hosts, tokens, trust, and hosts forgotten."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.store_url import OWN_CLIENTS, OWN_PEERS, OWN_SIGNER
from support.json_page import documented
from support.lab.bare_runs import BareRun
from support.polling import SHARED, until

FORGOTTEN_WITHIN = 10.0 * SHARED
"""Seconds: the promise is 10."""


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[BareRun, str]]:
    """Give three bare hosts, of which h1 had a network and two containers before it began a cluster, and the token."""
    found = BareRun()
    try:
        found.up()
        found.exec("h1", "linkspan agent --print-config")
        found.run("mend", "h1")  # starts an agent, as a user would
        found.exec("h1", "linkspan network create demo --pool 10.244.0.0/16 --backend vxlan")
        found.run("attach", "h1", "c1")
        found.run("attach", "h1", "c4")
        before = found.exec("h1", "linkspan endpoint list -o json")
        with found.no_loss("c1", found.address("c4")):
            token = found.init(options="--voters 1")  # the others stay clients; test_voters.py has what follows
        after = json.loads(found.exec("h1", "linkspan endpoint list -o json"))
        assert after == json.loads(before)
        with concurrent.futures.ThreadPoolExecutor() as pool:  # two at once
            list(pool.map(lambda host: found.join(host, token), ("h2", "h3")))
        found.run("attach", "h2", "c2")
        found.run("attach", "h3", "c3")
        yield found, token
    finally:
        found.run("down")


@pytest.fixture
def cluster(made: tuple[BareRun, str]) -> BareRun:
    """Give the cluster."""
    return made[0]


@pytest.fixture
def token(made: tuple[BareRun, str]) -> str:
    """Give the token that `cluster init` printed."""
    return made[1]


def test_three_commands_make_a_network(cluster: BareRun) -> None:
    """Containers of the first host keep what they have, and all reach each other."""
    assert cluster.members("h2") == {"h1": "voter", "h2": "client", "h3": "client"}
    until(lambda: cluster.pings("c1", cluster.address("c2")), "c1 reaches c2")
    until(lambda: cluster.pings("c3", cluster.address("c4")), "c3 reaches c4")
    assert "1 voter, and none may be lost" in cluster.exec("h3", "linkspan cluster members")
    assert not (cluster.folder / "h1" / "state" / "store").exists()


def test_commands_print_what_the_page_says(cluster: BareRun, tmp_path: Path) -> None:
    """Each field of docs/json.md, and no other one; init and join are repeated for that, and two hosts keep roles."""
    page, id_ = documented(), cluster.token("--uses 1")["id"]
    commands = {
        "h1": ("cluster init", "cluster members", f"cluster snapshot {tmp_path / 'one.db'}", "cluster token create",
               "cluster token list", f"cluster token show {id_}", f"cluster token revoke {id_}"),
        "h2": (f"cluster join {cluster.token()['token']}", "cluster members"),
    }  # fmt: skip
    for host, words in commands.items():
        for command in words:
            told = json.loads(cluster.exec(host, f"linkspan {command} -o json"))
            is_list, fields = page[next(one for one in page if f"{command} ".startswith(f"{one} "))]
            assert isinstance(told, list) == is_list, command
            assert set(told[0] if is_list else told) == fields, command


def test_init_and_join_may_be_repeated(cluster: BareRun, token: str) -> None:
    """A second init makes one more token, a second join changes nothing."""
    again = cluster.init()
    assert again != token
    assert cluster.join("h2", again)["host"] == "h2"
    assert cluster.members()["h2"] == "client"
    assert "or is a voter of one" in cluster.refused("h1", f"cluster join {token}")
    assert "joined a cluster already" in cluster.refused("h2", "cluster init")


def test_a_token_lets_in_only_whom_it_says(cluster: BareRun, token: str) -> None:
    """One that is broken, of another secret, used up, revoked or expired is refused with the reason."""
    assert "not complete" in cluster.refused("h2", f"cluster join {token[:-3]}")
    assert "no join token" in cluster.refused("h2", "cluster join SWMTKN-1-abc")
    one = cluster.token("--uses 1 --ttl 1h")
    cluster.join("h2", one["token"])
    cluster.join("h2", one["token"])  # the same host again
    assert f"token {one['id']} is used up" in cluster.refused("h3", f"cluster join {one['token']}")
    told = json.loads(cluster.exec("h1", f"linkspan cluster token show {one['id']} -o json"))
    assert (told["state"], told["uses"], len(told["used"])) == ("used up", 1, 1)
    assert one["token"] not in json.dumps(told)
    two = cluster.token()
    cluster.exec("h1", f"linkspan cluster token revoke {two['id']}")
    assert f"token {two['id']} is revoked" in cluster.refused("h3", f"cluster join {two['token']}")
    short = cluster.token("--ttl 1s")
    show = f"linkspan cluster token show {short['id']} -o json"
    until(lambda: json.loads(cluster.exec("h1", show))["state"] == "expired", "the token expires")
    assert f"token {short['id']} is expired" in cluster.refused("h3", f"cluster join {short['token']}")
    listed = {one["id"]: one["state"] for one in json.loads(cluster.exec("h1", "linkspan cluster token list -o json"))}
    assert (listed[two["id"]], listed[short["id"]]) == ("revoked", "expired")
    assert "does not exist" in cluster.refused("h1", "cluster token show abc")
    assert "on a voter: 192.0.2.1" in cluster.refused("h2", "cluster token create")
    kept = cluster.own_etcdctl("get /linkspan-trust/ --prefix").stdout
    assert one["id"] in kept
    assert one["token"] not in kept


def test_a_host_writes_its_own_records_alone(cluster: BareRun) -> None:
    """It reads all records, and writes no other host's; tokens and users are closed to it."""
    ids = {host: (cluster.files(host).state_dir / "host-id").read_text().strip() for host in ("h2", "h3")}
    other, own = f"/linkspan/hosts/{ids['h3']}", f"/linkspan/hosts/{ids['h2']}"
    assert cluster.own_etcdctl(f"get {other}", "h2", user="h2").stdout.startswith(other)
    for words in (f"put {other} x", f"del {other}", f"put /linkspan/alive/{ids['h3']} x", "put /else x",
                  f"put /linkspan/endpoints/{ids['h3']}/x/y z", "put /linkspan/.cluster x"):  # fmt: skip
        assert "permission denied" in cluster.own_etcdctl(words, "h2", user="h2").stderr, words
    for words in ("get /linkspan-trust/ --prefix", "user list", "role list", "get / --prefix"):
        assert "permission denied" in cluster.own_etcdctl(words, "h2", user="h2").stderr, words
    kept = json.loads(cluster.own_etcdctl(f"get {own} -w json", "h2", user="h2").stdout)
    assert kept["kvs"]
    assert "OK" in cluster.own_etcdctl("put /linkspan/networks/none x", "h2", user="h2").stdout
    cluster.own_etcdctl("del /linkspan/networks/none", "h2", user="h2")
    denied = cluster.refused("h2", "host drain h3")
    assert "or on a voter" in denied
    cluster.exec("h1", "linkspan host drain h3")
    cluster.exec("h3", "linkspan host undrain h3")


def test_a_hosts_certificate_is_worth_nothing_where_voters_meet(cluster: BareRun) -> None:
    """The port of voters refuses it, and the port for clients refuses whoever has none."""
    files = cluster.files("h2")
    peers = ["ip", "netns", "exec", f"{cluster.name}-h2", "openssl", "s_client", "-connect", f"192.0.2.1:{OWN_PEERS}"]
    own = ["-cert", str(files.certificate), "-key", str(files.key), "-CAfile", str(files.authority)]
    ask = b"GET /members HTTP/1.0\r\n\r\n"
    done = subprocess.run([*peers, *own, "-quiet"], input=ask, capture_output=True, check=False)
    assert b"alert" in done.stderr
    assert b"HTTP/1.0 200" not in done.stdout
    bare = [*peers[:-1], f"192.0.2.1:{OWN_CLIENTS}", "-quiet"]
    done = subprocess.run(bare, input=b"GET /version HTTP/1.0\r\n\r\n", capture_output=True, check=False)
    assert b"etcdserver" not in done.stdout
    secrets = [files.key, files.password, *(cluster.files("h1").folder.iterdir())]
    assert {file.stat().st_mode & 0o777 for file in secrets} == {0o600}
    assert sorted(one.name for one in files.folder.iterdir()) == ["client-ca.pem", "host.key", "host.pem", "password"]


def test_containers_do_not_reach_etcd_or_the_signer(cluster: BareRun) -> None:
    """All three ports are closed to them, on the voter's own address, and open to the other hosts."""
    for port in (OWN_CLIENTS, OWN_PEERS, OWN_SIGNER):
        for place, reached in (("h2", True), ("c1", False), ("c2", False)):
            connect = ["timeout", "5", "bash", "-c", f"</dev/tcp/192.0.2.1/{port}"]
            argv = ["ip", "netns", "exec", f"{cluster.name}-{place}", *connect]
            found = subprocess.run(argv, capture_output=True, check=False).returncode == 0
            assert found == reached, (place, port)


def test_a_host_with_networks_of_its_own_joins_no_other_cluster(cluster: BareRun, token: str) -> None:
    """It is told why, and keeps its networks; the secret stays with it."""
    alone = BareRun()
    try:
        alone.up(1)
        alone.run("mend", "h1")
        refused = alone.refused("h1", f"cluster join {token}")  # no way to the other lab's host
        assert "192.0.2.1:5381 cannot be reached" in refused
        other = alone.init()
        assert "its authority has another hash" in cluster.refused("h2", f"cluster join {other}")
    finally:
        alone.run("down")


def test_etcd_outlives_the_agent_and_comes_back_when_it_dies(cluster: BareRun) -> None:
    """A killed agent leaves it running, and the next one adopts it; a killed etcd is started again."""
    (first,) = cluster.own_etcd()
    cluster.run("break", "h1", "agent-kill")
    cluster.run("mend", "h1")
    assert cluster.own_etcd() == [first]
    with cluster.no_loss("c2", cluster.address("c3")):
        os.kill(first, signal.SIGKILL)
        until(lambda: cluster.own_etcd() not in ([], [first]), "etcd runs again", 10 * SHARED)
    until(lambda: cluster.status("h2")["store"]["ok"], "h2 has its store again")
    assert cluster.members() == {"h1": "voter", "h2": "client", "h3": "client"}


def test_without_the_first_host_what_runs_continues(cluster: BareRun, token: str) -> None:
    """Nobody joins and nothing is changed, but containers reach each other."""
    cluster.run("break", "h1", "link-down")
    try:
        assert cluster.pings("c2", cluster.address("c3"))
        assert "cannot be reached" in cluster.refused("h2", f"cluster join {token}")
        until(lambda: not cluster.status("h2")["store"]["ok"], "h2 misses its store")
        assert cluster.pings("c3", cluster.address("c2"))
    finally:
        cluster.run("mend", "h1")
    until(lambda: cluster.status("h2")["store"]["ok"], "h2 has its store again")
    until(lambda: cluster.pings("c1", cluster.address("c2")), "c1 reaches c2")


def test_a_host_that_knows_no_voter_any_more_is_called_by_one(cluster: BareRun) -> None:
    """Its settings name an address that nobody has, as if the voter had moved while it was off."""
    settings = cluster.folder / "h2" / "agent.toml"
    cluster.run("break", "h2", "agent-kill")
    settings.write_text(settings.read_text().replace("192.0.2.1:", "192.0.2.99:"))
    cluster.run("mend", "h2")
    until(lambda: cluster.status("h2")["store"]["ok"], "h2 has its store again")
    assert "//192.0.2.1:" in settings.read_text()
    assert "the voter at 192.0.2.1 has called this host" in cluster.exec("h2", "linkspan events")


def test_a_host_that_waits_for_a_store_that_is_elsewhere_joins_again(cluster: BareRun) -> None:
    """It has no record of the cluster, so its agent has not begun; no call can reach it."""
    state, settings = cluster.folder / "h2" / "state", cluster.folder / "h2" / "agent.toml"
    cluster.run("detach", "c2")
    cluster.run("break", "h2", "agent-kill")
    settings.write_text(settings.read_text().replace("192.0.2.1:", "192.0.2.99:"))
    (state / "replica.json").unlink()
    assert cluster.join("h2", cluster.token()["token"])["host"] == "h2"
    cluster.run("attach", "h2", "c2")
    until(lambda: cluster.pings("c1", cluster.address("c2")), "c1 reaches c2")


def _watches(cluster: BareRun, seen: Path) -> bool:
    """Change a key that no agent reads; return whether the watch has seen it."""
    cluster.own_etcdctl("put /linkspan/upkeep/test x")
    return "/linkspan/upkeep/test" in seen.read_text()


def _forget(cluster: BareRun) -> None:
    """Forget h3, after what is refused."""
    assert "no host nobody" in cluster.refused("h1", "cluster forget nobody")
    assert "is the voter that you ask" in cluster.refused("h1", "cluster forget h1")
    assert "only a voter" in cluster.refused("h2", "cluster forget h3")
    told = json.loads(cluster.exec("h1", "linkspan cluster forget h3 -o json"))
    assert set(told) == documented()["cluster forget"][1]


def test_a_forgotten_host_reads_nothing_and_comes_back_as_a_new_one(cluster: BareRun, tmp_path: Path) -> None:
    """Its open watch ends within ten seconds, its certificate is refused; set up again, it may join."""
    id_ = (cluster.files("h3").state_dir / "host-id").read_text().strip()
    cluster.run("detach", "c3")
    cluster.run("break", "h3", "agent-kill")
    seen = tmp_path / "seen"
    argv = [*cluster.etcdctl_words("h3", "h3"), "watch", "/linkspan/", "--prefix"]
    with seen.open("w") as file, subprocess.Popen(argv, stdout=file, stderr=file) as watch:
        try:
            until(lambda: _watches(cluster, seen), "the watch of h3 sees changes")
            _forget(cluster)
            cluster.own_etcdctl("put /linkspan/networks/after x")
            refused = cluster.own_etcdctl("get /linkspan/hosts/ --prefix", "h3", user="h3")
            assert refused.returncode != 0
            assert not refused.stdout
            until(lambda: "h3" not in cluster.members(), "h3 is gone", FORGOTTEN_WITHIN)
            until(lambda: cluster.status("h2")["store"]["ok"], "h2 has its store again")
            assert "/linkspan/networks/after" not in seen.read_text()
        finally:
            watch.kill()
    cluster.own_etcdctl("del /linkspan/networks/after")
    assert id_ not in cluster.own_etcdctl("user list").stdout
    until(lambda: cluster.pings("c1", cluster.address("c2")), "c1 reaches c2")
    cluster.run("mend", "h3")
    token = cluster.token()["token"]
    assert "linkspan uninstall" in cluster.refused("h3", f"cluster join {token}")
    cluster.exec("h3", f"linkspan uninstall --yes --force --config {cluster.folder / 'h3' / 'agent.toml'}")
    cluster.join("h3", token)
    until(lambda: cluster.members().get("h3") == "client", "h3 is back")


def test_uninstall_removes_etcd_and_the_setting(cluster: BareRun) -> None:
    """The voter is refused while others need it; forced, nothing of it is left."""
    words = f"--config {cluster.folder / 'h1' / 'agent.toml'}"
    dry = f"linkspan uninstall --dry-run -o json {words}"  # by the snapshot, which is written a second after a change
    until(lambda: "2 other hosts of the cluster have etcd here" in cluster.exec("h1", dry), "two hosts need etcd")
    said = json.loads(cluster.exec("h1", f"linkspan uninstall --yes --force -o json {words}"))
    assert said["left"] == []
    assert any(one.startswith("etcd at 192.0.2.1") for one in said["removed"])
    assert cluster.own_etcd() == []
    assert "store" not in (cluster.folder / "h1" / "agent.toml").read_text()
