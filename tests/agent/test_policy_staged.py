"""Staged policies and the log of refused connections, on the real kernel: what is counted, by whom, and what is cut."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from linkspan.core.errors import KernelError
from linkspan.kernel.probe.nflog import Nflog
from linkspan.policy import rules
from support.agent.agent_host import pings
from support.agent.traffic import answers, inside
from support.agent.yard import Yard, yard_in
from support.polling import SHARED, until

WEB = "policy: web\nselect: {name: x-b}\ningress:\n- from: [{labels: {pod: a}}]\n  ports: [80]\n"
SHUT = "policy: web\nselect: {name: x-b}\ningress: []\n"


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """Return the host of this file's tests."""
    with yard_in(tmp_path_factory.mktemp("staged")) as made:
        yield made


@pytest.fixture(autouse=True)
def _clean(yard: Yard) -> Iterator[None]:
    yield
    yard.apply("")


def _stage(yard: Yard, text: str, *words: str) -> None:
    file = yard.folder / "staged.yaml"
    file.write_text(text)
    yard.host.cli("policy", "apply", str(file), *words)


def _refused(yard: Yard) -> dict[tuple[str, int, str, str, str], int]:
    """Return the packets that staged policies would have refused."""
    return {
        (one["policy"], one["line"], one["from"], one["to"], one["port"]): one["packets"]
        for one in yard.host.json("policy", "staged")["refused"]
    }


def test_a_staged_policy_counts_what_it_would_refuse_and_refuses_nothing(yard: Yard) -> None:
    """By policy, line, both ends and port; over a restart of the agent; until it is enforced."""
    _stage(yard, WEB, "--stage")
    assert yard.host.json("policy", "list") == []
    assert yard.host.json("policy", "show", "web", "--staged")["ingress"][0]["ports"][0]["first"] == 80
    assert "it is staged: `linkspan policy show --staged web`" in yard.host.cli("policy", "show", "web", code=1)
    assert "+- from:" in yard.host.json("policy", "diff", "--staged", code=3)[0]["diff"]
    server = yard.ips["x-b"]
    assert answers(yard.netns["z-a"], server[4], 80)
    assert answers(yard.netns["z-b"], server[4], 80)
    assert answers(yard.netns["z-b"], server[6], 81, "udp")
    assert pings(yard.netns["z-b"], server[6])
    pinged = _refused(yard).pop(("web", 1, "z-b", "x-b", "echo-request/icmp"))
    assert pinged
    assert {of: packets for of, packets in _refused(yard).items() if of[-1] != "echo-request/icmp"} == {
        ("web", 1, "z-b", "x-b", "80/tcp"): 1,
        ("web", 1, "z-b", "x-b", "81/udp"): 1,
    }
    yard.host.restart()
    assert answers(yard.netns["z-b"], server[4], 80)
    assert _refused(yard)["web", 1, "z-b", "x-b", "80/tcp"] == 2
    assert yard.host.differences() == []
    assert "would be created" in yard.host.cli("policy", "staged")
    yard.host.cli("policy", "enforce", "web")
    assert not answers(yard.netns["z-b"], server[4], 80)
    assert answers(yard.netns["z-a"], server[4], 80)
    assert yard.host.json("policy", "staged") == {"policies": [], "refused": [], "more": 0, "full": False, "cuts": 0}
    assert [one["name"] for one in yard.host.json("policy", "list")] == ["web"]
    assert yard.host.differences() == []


def test_a_staged_version_leaves_the_enforced_one_in_force(yard: Yard) -> None:
    """The enforced version has the packets that both refuse; without the staged version nothing is counted."""
    yard.apply(WEB)
    _stage(yard, SHUT, "--stage")
    server = yard.ips["x-b"][4]
    assert answers(yard.netns["z-a"], server, 80)
    assert not answers(yard.netns["z-b"], server, 80)
    assert _refused(yard) == {("web", 1, "z-a", "x-b", "80/tcp"): 1}
    (change,) = yard.host.json("policy", "diff", "--staged", code=3)
    assert (change["policy"], change["what"]) == ("web", "changed")
    assert "+ingress: []" in change["diff"]
    yard.host.cli("policy", "delete", "web", "--staged")
    assert yard.host.json("policy", "staged")["policies"] == []
    assert not answers(yard.netns["z-b"], server, 80)
    assert "is not staged" in yard.host.cli("policy", "enforce", "web", code=1)


def test_staged_says_how_many_open_connections_it_would_end(yard: Yard) -> None:
    """And that many end when it is enforced."""
    with yard.connected("z-b") as (client, accepted):
        _stage(yard, SHUT, "--stage")
        assert yard.host.json("policy", "staged")["cuts"] == 1
        client.sendall(b"still")
        assert accepted.recv(16) == b"still"
        yard.host.cli("policy", "enforce", "web")
        client.sendall(b"gone")
        with pytest.raises(ConnectionResetError):
            client.recv(16)


def _free(yard: Yard) -> bool:
    """Return whether nobody listens to the log's group on the host."""
    with inside(yard.host.netns):
        try:
            Nflog(rules.GROUP).close()
        except KernelError:
            return False
    return True


def test_drops_names_policy_line_and_both_ends_while_somebody_follows(yard: Yard) -> None:
    """The agent listens only as long; what is staged says so."""
    yard.apply(WEB)
    _stage(yard, "policy: out\nselect: {name: z-c}\negress: []\n", "--stage")
    assert _free(yard)
    command = [sys.executable, "-m", "linkspan.cli.main", "drops", "--follow", "-o", "json"]
    command += ["--socket", str(yard.host.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        try:
            until(lambda: not _free(yard), "the agent listens", SHARED)
            assert not answers(yard.netns["z-b"], yard.ips["x-b"][4], 80)
            assert answers(yard.netns["z-c"], yard.ips["y-a"][6], 81)
            assert following.stdout is not None
            found = [json.loads(following.stdout.readline()) for _ in range(2)]
        finally:
            following.terminate()
    refused, staged = sorted(found, key=lambda one: one["staged"])
    ends = ("from", "from_address", "to", "to_address", "port")
    assert [refused[key] for key in ends] == ["z-b", yard.ips["z-b"][4], "x-b", yard.ips["x-b"][4], "80/tcp"]
    assert refused["by"] == {"policy": "web", "line": 1}
    assert [staged[key] for key in ends] == ["z-c", yard.ips["z-c"][6], "y-a", yard.ips["y-a"][6], "81/tcp"]
    assert staged["by"] == {"policy": "out", "line": 1}
    until(lambda: _free(yard), "the agent listens no more", 20)
    assert "policy web line 1" in yard.host.cli("drops")


def test_metrics_count_what_each_policy_refuses(yard: Yard) -> None:
    """By policy, direction, and whether it is staged; a counter goes on when the rules are put again."""
    yard.apply(WEB)

    def counted(effect: str) -> float:
        labels = f'{{direction="ingress",effect="{effect}",policy="web"}}'
        lines = str(yard.host.client.call("GET", "/metrics")).splitlines()
        mine = [line for line in lines if line.startswith(f"linkspan_policy_refused_packets_total{labels} ")]
        return float(mine[0].split()[-1]) if mine else 0.0

    server = yard.ips["x-b"][4]
    before = counted("refused")
    assert not answers(yard.netns["z-b"], server, 80)
    assert counted("refused") > before
    before = counted("refused")
    yard.apply(f"{WEB}---\npolicy: more\nselect: {{name: y-a}}\ningress: []\n")
    assert not answers(yard.netns["z-b"], server, 80)
    assert counted("refused") > before
    _stage(yard, SHUT, "--stage")
    assert answers(yard.netns["z-a"], server, 80)
    assert counted("staged") >= 1
