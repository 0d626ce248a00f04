"""Docker's iptables, firewalld and nftables.service beside ours: traffic passes, and nothing of theirs is changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent.agent_host import Host, run
from support.agent.stage import MODES, OUTSIDE, UPLINK, Container, Stage, port, staged
from support.agent.traffic import answers, asked, echoes, inside, serving
from support.netns.firewalld_fixture import firewall_cmd, firewalld_runs
from support.polling import HEALED_WITHIN, until

IPTABLES = {4: "iptables", 6: "ip6tables"}


def docker(host: Host) -> None:
    """Set the rules that Docker sets: FORWARD drops, DOCKER-USER is called first and returns."""
    for command in IPTABLES.values():
        for rule in (
            "-P FORWARD DROP",
            "-N DOCKER-USER",
            "-A DOCKER-USER -j RETURN",
            "-N DOCKER-FORWARD",
            "-A DOCKER-FORWARD -i docker0 -j ACCEPT",
            "-A FORWARD -j DOCKER-USER",
            "-A FORWARD -j DOCKER-FORWARD",
        ):
            run(command, *rule.split(), netns=host.netns)


def dropping(host: Host) -> None:
    """Set what a plain firewall sets: FORWARD drops but for what belongs to a connection."""
    for command in IPTABLES.values():
        run(command, "-P", "FORWARD", "DROP", netns=host.netns)
        known = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
        run(command, "-A", "FORWARD", *known, "-j", "ACCEPT", netns=host.netns)


def theirs(host: Host) -> list[str]:
    """Return all of iptables' rules but ours."""
    lines = [
        line for command in IPTABLES.values() for line in run(command, "-S", netns=host.netns).splitlines()
    ]
    return [line for line in lines if "linkspan: " not in line]


def ours(host: Host, chain: str) -> int:
    """Count our rules in a chain of both families."""
    listed = [run(command, "-S", chain, netns=host.netns) for command in IPTABLES.values()]
    return sum(line.count("linkspan: ") for line in listed)


class Pair:
    """Two containers of one network, of which the first publishes a port."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.web: Container = stage.attach(ports=[port(8080, 80)])
        self.client: Container = stage.attach()

    def talk(self) -> None:
        """Assert that everything is reached that should be."""
        for family in (4, 6):
            with serving(self.web.netns, 80), serving(self.stage.outside, 80):
                assert asked(self.client.netns, self.web.ip(family), 80)[1] == self.web.netns
                assert asked(self.client.netns, OUTSIDE[family], 80) == (UPLINK[family], self.stage.outside)
                assert asked(self.stage.outside, UPLINK[family], 8080) == (OUTSIDE[family], self.web.netns)

    def out(self, family: int) -> bool:
        """Return whether the outside answers."""
        return echoes(self.client.netns, OUTSIDE[family])


@pytest.fixture(params=MODES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Return a host for each test."""
    with staged(request.param) as made:
        yield made


@pytest.mark.parametrize(("set_up", "chain"), [(docker, "DOCKER-USER"), (dropping, "FORWARD")])
def test_traffic_passes_a_forward_chain_that_drops(stage: Stage, set_up: object, chain: str) -> None:
    """Rules that come after the network do not cut it off; a flush of their chain is healed in time; all goes back."""
    host, pair = stage.host, Pair(stage)
    assert callable(set_up)
    set_up(host)
    before = theirs(host)
    until(lambda: ours(host, chain) == 8, "two rules for each of four pools", HEALED_WITHIN)
    pair.talk()
    assert theirs(host) == before
    for command in IPTABLES.values():
        run(command, "-F", chain, netns=host.netns)
    until(lambda: ours(host, chain) == 8, "our rules again", HEALED_WITHIN)
    until(lambda: pair.out(4) and pair.out(6), "the outside's answer", HEALED_WITHIN)
    assert {heal["kind"] for heal in host.heals()} >= {"ForwardAccept"}
    for container in (pair.web, pair.client):
        host.detach(container.netns)
    for network in ("demo", "other"):
        host.cli("network", "delete", network)
    assert ours(host, chain) == 0
    assert theirs(host) == [r for r in before if r.startswith(("-P", "-N")) or f"-A {chain} " not in r]


def test_rules_that_were_there_before_the_agent(stage: Stage) -> None:
    """Docker has run for long before the agent starts: networks pass its rules, also after a restart."""
    host, pair = stage.host, Pair(stage)
    host.stop()
    docker(host)
    before = theirs(host)
    host.start()
    assert ours(host, "DOCKER-USER") == 8, "before it says ready"
    pair.talk()
    host.restart()
    pair.talk()
    assert theirs(host) == before
    assert host.differences() == []


def test_nft_flush_ruleset_is_healed(stage: Stage) -> None:
    """Debian's nftables.service removes all tables at each reload; ours are back, and work, in time."""
    host, pair = stage.host, Pair(stage)
    stranger = stage.attach("other")
    pair.talk()
    run("nft", "flush", "ruleset", netns=host.netns)
    until(lambda: host.differences() == [], "nothing to differ", HEALED_WITHIN)
    pair.talk()
    with serving(stranger.netns, 80):
        assert not answers(pair.client.netns, stranger.ip(), 80), "isolated again"
    assert {heal["kind"] for heal in host.heals()} == {"NftElement"}, "the last twenty"


@pytest.mark.parametrize("mode", MODES)
def test_firewalld_lets_the_networks_through_and_a_reload_is_healed(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With firewalld running, containers reach each other and outside, and are reached, before and after a reload."""
    with staged(mode, started=False) as stage:
        with inside(stage.host.netns):
            daemon = firewalld_runs(tmp_path, monkeypatch)
            daemon.__enter__()
        try:
            stage.start()
            pair = Pair(stage)
            pair.talk()
            trusted = set(firewall_cmd("--zone=trusted", "--list-sources"))
            assert len(trusted) == 4
            firewall_cmd("--reload")
            until(
                lambda: set(firewall_cmd("--zone=trusted", "--list-sources")) == trusted,
                "the pools to be trusted again",
                HEALED_WITHIN,
            )
            pair.talk()
        finally:
            stage.host.close()
            daemon.__exit__(None, None, None)
