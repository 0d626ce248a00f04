"""Records of policies: what an apply refuses, what it warns of, and races with other hosts."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan.agent.policies import Policies
from linkspan.core.errors import Conflict
from linkspan.core.model import Host
from linkspan.policy.model import Peer, Policy, Ports, Rule, Selector
from support.policy_stage import WEB, Stage
from support.records.peers import network

DENY = msgspec.structs.replace(
    WEB, ingress=(Rule(action="deny", peers=(Peer(select=Selector(labels={"tier": "bad"})),)),)
)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Return such hosts, before they run."""
    return Stage(tmp_path, monkeypatch)


def policies_of(stage: Stage) -> Policies:
    """Return the policies of host h1."""
    one = stage.member
    parts = one.replica, stage.records, one.networks, one.hosts, stage.enforcement, stage.names, one.event_log
    return Policies(*parts)


def test_a_policy_that_an_older_agent_would_misread_is_refused(stage: Stage) -> None:
    """It ignores a tier, and has no record of what passes; a policy of its own time is nothing to it."""
    policies = policies_of(stage)
    old = Host(id="h2", name="old", enforces=True)
    ping = Rule(ports=(Ports("icmp", 8, 8),))
    newer = (
        Policy(name="p", tier="admin", ingress=(Rule(action="deny"),)),
        Policy(name="p", tier="baseline", ingress=(Rule(action="pass"),)),
        Policy(name="p", egress=(ping,)),
    )

    async def main() -> None:
        async with stage.running():
            await stage.member.replica.write({"hosts/h2": old})
            for one in newer:
                for staged in (False, True):
                    with pytest.raises(Conflict, match="host old is of a version that knows neither tiers"):
                        await policies.apply([WEB, one], staged=staged)
                (warning,) = (text for text in policies.warnings(one))
                assert "host old does not enforce it as it is" in warning
            assert policies.all() == []
            await policies.apply([WEB])
            await stage.member.replica.write({"hosts/h2": msgspec.structs.replace(old, tiers=True)})
            for one in newer:
                await policies.apply([one])

    asyncio.run(main())


def test_a_policy_with_dns_names_waits_for_agents_that_know_them(stage: Stage) -> None:
    """An older agent would take a peer by name for none, and refuse the record."""
    policies = policies_of(stage)
    old = Host(id="h2", name="old", enforces=True, tiers=True)
    named = Policy(name="p", egress=(Rule(peers=(Peer(dns=("api.example.com",)),)),))

    async def main() -> None:
        async with stage.running():
            await stage.member.replica.write({"hosts/h2": old})
            with pytest.raises(Conflict, match="host old is of a version that knows no DNS names"):
                await policies.apply([named])
            (warning,) = policies.warnings(named)
            assert "host old does not enforce it as it is" in warning
            assert policies.all() == []
            await policies.apply([WEB])

    asyncio.run(main())


def test_an_apply_says_that_connections_on_the_fast_path_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for those whom the policy comes to: not again for other rules, nor if it was staged before."""
    policies = policies_of(stage)
    monkeypatch.setattr(policies, "_lax", list)  # these hosts are no agents
    monkeypatch.setattr(policies, "silent", list)
    stricter = msgspec.structs.replace(WEB, ingress=())
    elsewhere = Policy(name="far", select=Selector(networks=("far",)), ingress=())
    later = Policy(name="later", select=Selector(names=("other",)), ingress=())
    wider = msgspec.structs.replace(later, select=Selector(names=("other", "another")))

    async def main() -> None:
        async with stage.running():
            assert (await policies.apply([WEB])).warnings == ()
            await policies.delete("web")
            await stage.member.replica.write({"networks/demo": network("vxlan", fast="true", vni="7")})
            stage.member.networks.refresh()
            (told,) = (await policies.apply([WEB])).warnings
            assert "network demo: TCP connections" in told
            assert (await policies.apply([stricter])).warnings == ()
            assert not any("TCP" in text for text in (await policies.apply([elsewhere])).warnings)
            assert (await policies.apply([later], staged=True)).warnings == ()
            assert (await policies.enforce("later")).warnings == ()
            await policies.apply([later], staged=True)
            assert "TCP" in " ".join((await policies.apply([wider])).warnings), "it selects others than both versions"
            await policies.apply([later], staged=True)
            assert (await policies.apply([msgspec.structs.replace(wider, order=1)])).warnings == ()

    asyncio.run(main())


def test_a_change_says_which_hosts_have_it_later(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent host's kernel goes on with the former version. Nothing is said where nothing changes for it."""
    policies = policies_of(stage)
    silent = [Host(id=name, name=name, enforces=True, tiers=True, dns_peers=True) for name in ("h2", "h3")]

    async def main() -> None:
        async with stage.running():
            live = {"h2", "h3"}
            await stage.member.replica.write({f"hosts/{one.id}": one for one in silent})
            monkeypatch.setattr(stage.member.hosts, "lives", lambda host: host == "h1" or host in live)
            assert (await policies.apply([WEB])).warnings == ()
            live.remove("h2")
            assert (await policies.apply([WEB])).warnings == ()
            assert (await policies.apply([DENY], staged=True)).warnings == ()
            (told,) = (await policies.enforce("web")).warnings
            assert told == "host h2 is silent: until its agent runs again, it enforces what was recorded before"
            live.clear()
            await policies.delete("web")
            assert policies.silent() == [
                "hosts h2, h3 are silent: until their agents run again, they enforce what was recorded before"
            ]

    asyncio.run(main())


def test_names_of_what_does_not_exist_are_warned_of(stage: Stage) -> None:
    """Of peers, too; and DNS names of containers open nothing."""
    policies = policies_of(stage)
    peers = tuple(Peer(select=one) for one in (Selector(networks=("demo", "dmeo")), Selector(hosts=("h1", "h9"))))
    wrong = Policy(name="p", ingress=(Rule(peers=peers, line=4),), egress=(Rule(peers=(Peer(
        dns=("proxy.demo.internal", "*.demo", "api.example.com", "node.ec2.internal")
    ),)),))  # fmt: skip

    async def main() -> None:
        async with stage.running():
            found = [text for text in policies.warnings(wrong) if not re.search("older version|no nflog", text)]
            assert found == [
                "policy p: *.demo is a name of containers, and no DNS name opens these: write labels",
                "policy p: proxy.demo.internal is a name of containers, and no DNS name opens these: write labels",
                "policy p line 4: network dmeo does not exist",
                "policy p line 4: host h9 does not exist",
            ]

    asyncio.run(main())


def test_policies_about_a_network_that_goes_are_named(stage: Stage) -> None:
    """Whoever selects its containers, or has them as peers; staged ones, too."""
    policies = policies_of(stage)
    peer = Rule(peers=(Peer(select=Selector(networks=("gone",))),))
    there = {
        "policies/web": WEB,
        "policies/of": Policy(name="of", select=Selector(networks=("gone",)), ingress=()),
        "staged/by": Policy(name="by", egress=(peer,)),
    }

    async def main() -> None:
        async with stage.running():
            await stage.member.replica.write(there)
            assert policies.about("other") == []
            assert policies.about("gone") == ["policies by, of name network gone, which does not exist now"]
            await policies.delete("of")
            assert policies.about("gone") == ["policy by names network gone, which does not exist now"]

    asyncio.run(main())


def test_only_the_version_that_was_looked_at_is_enforced(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host stages a version while this one enforces the earlier: neither is lost, and neither counts."""
    policies = policies_of(stage)
    monkeypatch.setattr(policies, "_lax", list)  # these hosts are no agents
    transaction, store = stage.member.store.transaction, stage.member.store

    async def main() -> None:
        async with stage.running():
            await stage.member.replica.write({"staged/web": WEB})

            async def late(*args: Any, **more: Any) -> int:
                theirs = stage.other.replica.encoded("staged/web", DENY)
                await stage.other.store.transaction({"staged/web": theirs})
                return await transaction(*args, **more)

            with monkeypatch.context() as raced:
                raced.setattr(store, "transaction", late)
                with pytest.raises(Conflict, match="staged again"):
                    await policies.enforce("web")
            assert policies.all() == []
            assert policies.get_staged("web") == DENY
            await policies.enforce("web")
            assert (policies.all(), policies.staged()) == ([DENY], [])

    asyncio.run(main())
