"""Enforcement: what it keeps in the kernel and cuts, while records are odd, hosts unread and the kernel refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from linkspan.agent import policy_enforcement, policy_names
from linkspan.core.errors import Conflict, KernelError, Unavailable
from linkspan.core.kinds import ALL
from linkspan.core.model import Port
from linkspan.core.ruleset import element
from linkspan.core.states.host import Bridge, BridgeFilter, Key, NftChain, NftElement, NftSet, NftTable
from linkspan.core.store_contract import Record
from linkspan.endpoints.registry import policy_source
from linkspan.kernel.drivers import bridge_filters
from linkspan.policy.model import Peer, Policy, Rule, Selector
from support.policy_stage import HERE, NET, PROXY, WEB, Stage
from support.polling import eventually
from support.records.peers import network

DENY = msgspec.structs.replace(
    WEB, ingress=(Rule(action="deny", peers=(Peer(select=Selector(labels={"tier": "bad"})),)),)
)


async def _unread(_prefix: str) -> AsyncIterator[tuple[list[Record], int]]:
    raise Unavailable("no answer")
    yield [], 0


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Return such hosts, before they run."""
    return Stage(tmp_path, monkeypatch)


def test_addresses_that_no_pool_has_are_no_elements(stage: Stage) -> None:
    """An address of a family without sets, or outside of its network's pools, is none, whatever a record says."""

    async def main() -> None:
        async with stage.running():
            await stage.record("proxy", "10.77.9.9/32", "fd77::9/128", "192.0.2.9/32", app="proxy")
            await stage.apply(WEB)
            await stage.settled()
            assert "10.77.9.9" in stage.addresses("chosen4")
            assert "fd77::9" not in stage.addresses("")
            assert "192.0.2.9" not in stage.addresses("")

    asyncio.run(main())


def test_flows_are_cut_although_the_kernel_refuses_an_element(stage: Stage) -> None:
    """The failure is told, and what the policy forbids ends all the same."""

    async def main() -> None:
        async with stage.running():
            stage.machine.refused = {"10.77.0.2"}
            with pytest.raises(KernelError, match="refused"):
                await stage.apply(WEB)
            assert stage.cuts == 1
            stage.machine.refused = set()
            await stage.enforcement.enforce()
            assert stage.cuts == 2, "flows may have begun while rules were missing"

    asyncio.run(main())


def test_a_policy_past_which_packets_still_go_is_no_success(stage: Stage) -> None:
    """Its containers are on the fast path as long as the kernel refuses to remove them. What it forbids is cut."""

    async def main() -> None:
        async with stage.running():
            stage.stuck = True
            with pytest.raises(KernelError, match="the fast path stays"):
                await stage.apply(WEB)
            assert stage.cuts == 1
            stage.stuck = False
            await stage.enforcement.enforce()
            assert (len(stage.policed_off_path), stage.cuts) == (2, 2)

    asyncio.run(main())


def test_one_address_of_two_containers_stops_neither_the_others_nor_the_cut(stage: Stage) -> None:
    """The first container keeps it, and all others are under their policies."""
    shared, other = (
        msgspec.structs.replace(HERE, id=f"c{number}", name=f"n{number}", addresses=addresses, host_ifname="lsr2")
        for number, addresses in ((2, ("10.77.0.2/32",)), (3, ("10.77.0.3/32",)))
    )
    stage.member.endpoints |= {shared.identity: shared, other.identity: other}
    every = WEB, *(msgspec.structs.replace(WEB, name=name, select=Selector(names=(name,))) for name in ("n2", "n3"))

    async def main() -> None:
        async with stage.running():
            with pytest.raises(Conflict, match=r"disagree on .* 10\.77\.0\.2"):
                await stage.apply(*every)
            assert stage.addresses("policed_by_in4") == {"10.77.0.2", "10.77.0.3"}
            assert stage.cuts == 1

    asyncio.run(main())


def test_a_cut_that_failed_is_made_up_for(stage: Stage) -> None:
    """The next time cuts, although it finds no difference any more."""

    async def main() -> None:
        async with stage.running():
            stage.unable = True
            with pytest.raises(KernelError, match="no buffer space"):
                await stage.apply(WEB)
            stage.unable = False
            await stage.enforcement.enforce()
            assert stage.cuts == 1

    asyncio.run(main())


def test_endpoints_leave_the_fast_path_when_rules_are_there(stage: Stage) -> None:
    """Sooner, an answer on its way would begin a flow. A try that failed is followed by another one."""

    async def main() -> None:
        async with stage.running():
            await stage.apply(WEB)
            assert stage.policed_off_path == [{"10.77.0.2"}]
            stage.unable = True
            with pytest.raises(KernelError, match="no buffer space"):
                await stage.apply(DENY)
            assert len(stage.policed_off_path) == 2
            stage.unable = False
            await stage.enforcement.enforce()
            assert len(stage.policed_off_path) == 3

    asyncio.run(main())


def test_hosts_whose_labels_are_not_read_yet_are_nobody(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that denies by a label would let them in; unknown, their packets are dropped."""

    async def main() -> None:
        async with stage.running():
            await stage.record("bad", "10.77.9.9/32", tier="bad", app="proxy")
            await stage.apply(WEB)
            await stage.settled()
            assert "10.77.9.9" in stage.addresses("policy_known4")
            monkeypatch.setattr(policy_enforcement, "PATIENCE", 0.0)
            with monkeypatch.context() as away:
                away.setattr(stage.member.store, "pages", _unread)
                await stage.apply(DENY)
                assert "10.77.9.9" not in stage.addresses("policy_known4")
            await stage.settled()
            assert "10.77.9.9" in stage.addresses("policy_known4")
            assert "10.77.9.9" in stage.addresses("chosen4")

    asyncio.run(main())


def test_flows_of_a_removed_container_are_not_inherited_with_its_address(stage: Stage) -> None:
    """Other hosts cut them once its record is gone, and only if a rule let it in by its labels."""

    async def main() -> None:
        async with stage.running():
            await stage.record("proxy", "10.77.9.8/32", app="proxy")
            await stage.record("other", "10.77.9.9/32")
            await stage.apply(WEB)
            await stage.settled()
            known = stage.member.remote.of
            for name, expected in (("other", 0), ("proxy", 1)):
                cuts = stage.cuts
                await stage.other.store.transaction({}, deletes=[f"endpoints/h2/{name}/eth0"])
                await eventually(lambda name=name: f"{name}/eth0" not in known("demo", "h2"), "it is gone")
                await stage.enforcement.enforce()
                assert stage.cuts - cuts == expected

    asyncio.run(main())


def test_a_change_of_a_network_alone_cuts_nothing(stage: Stage) -> None:
    """Its MTU is no business of policies: they are the same as before."""

    async def main() -> None:
        async with stage.running():
            await stage.apply(WEB)
            await stage.settled()
            regime, cuts = stage.enforcement.regime, stage.cuts
            assert cuts
            await stage.member.replica.write({"networks/demo": msgspec.structs.replace(NET, mtu=1400)})
            stage.member.networks.refresh()
            await stage.enforcement.enforce()
            assert stage.enforcement.regime is regime
            assert stage.cuts == cuts

    asyncio.run(main())


def test_with_the_last_policy_goes_what_was_kept_for_a_start(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though other hosts' endpoints have not been read: no set is left that the elements could be in."""

    async def main() -> None:
        async with stage.running():
            await stage.apply(WEB)
            left = element(f"chosen4_{PROXY.digest}", "10.77.9.9")
            stage.machine.driver.states[left.key] = left
            monkeypatch.setattr(stage.member.store, "pages", _unread)
            await stage.enforcement.take_over()
            assert stage.machine.reconciler.desired.owners(left.key)
            stage.member.remote.listed()
            await stage.member.replica.write({}, deletes=["policies/web"])
            await stage.enforcement.enforce()
            assert stage.addresses("") == set()
            assert stage.machine.reconciler.desired.sources().keys() == {("host", "firewall")}

    asyncio.run(main())


def test_what_was_kept_for_a_start_stays_until_its_host_is_put(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a host is read while others are being put, its turn is the next one; nothing of it is missing in between."""
    monkeypatch.setattr(policy_enforcement, "PATIENCE", 0.0)
    gate, pages = asyncio.Event(), stage.member.store.pages

    async def gated(start: str) -> AsyncIterator[tuple[list[Record], int]]:
        await gate.wait()
        async for page in pages(start):
            yield page

    monkeypatch.setattr(stage.member.store, "pages", gated)

    async def main() -> None:
        async with stage.running():
            await stage.record("proxy", "10.77.9.9/32", app="proxy")
            await stage.apply(WEB)
            left = element(f"chosen4_{PROXY.digest}", "10.77.9.9")
            stage.machine.driver.states[left.key] = left
            await stage.enforcement.take_over()
            stage.enforcement.changed(frozenset(f"endpoints/h{number}/c/eth0" for number in range(3, 100)))
            gate.set()
            await stage.enforcement.enforce()
            assert stage.member.remote.complete, "h2 was to be read meanwhile"
            assert "10.77.9.9" in stage.addresses("chosen4")
            await stage.enforcement.enforce()
            assert "10.77.9.9" in stage.addresses("chosen4")
            assert ("policy", "kept") not in stage.machine.reconciler.desired.sources()

    asyncio.run(main())


def test_addresses_that_hosts_have_in_a_network_are_known(stage: Stage) -> None:
    """No endpoint has them, but packets come from them: the gateway's, and those of leases."""

    async def main() -> None:
        async with stage.running():
            await stage.apply(WEB)
            assert "10.77.0.1" in stage.addresses("policy_known4")
            lease = msgspec.structs.replace(await stage.other.leases.claim(NET, {}), addresses=("10.77.0.5/32",))
            await stage.other.replica.write({"leases/demo/h2": lease})
            await eventually(lambda: lease in stage.member.leases.all("demo"), "it is known")
            await stage.enforcement.enforce()
            assert "10.77.0.5" in stage.addresses("policy_known4")

    asyncio.run(main())


def test_an_attach_that_began_under_earlier_policies_is_cut(stage: Stage) -> None:
    """It was put with the elements of then; flows that began since may be forbidden."""

    async def main() -> None:
        async with stage.running():
            await stage.apply(msgspec.structs.replace(WEB, select=Selector(names=("nobody",))))
            await stage.settled()
            other = msgspec.structs.replace(HERE, id="c2", addresses=("10.77.0.3/32",), host_ifname="lsr2")
            planned = stage.enforcement.elements(other)
            await stage.apply(WEB)
            cuts = stage.cuts
            stage.machine.reconciler.change(policy_source(other.identity), planned)
            stage.member.endpoints[other.identity] = other
            stage.enforcement.note(other.identity)
            await stage.enforcement.enforce()
            assert stage.cuts == cuts + 1
            late = msgspec.structs.replace(HERE, id="c3", addresses=("10.77.0.4/32",), host_ifname="lsr3")
            stage.machine.reconciler.change(policy_source(late.identity), stage.enforcement.elements(late))
            stage.member.endpoints[late.identity] = late
            stage.enforcement.note(late.identity)
            await stage.enforcement.enforce()
            assert stage.cuts == cuts + 1, "it was attached under these"
            first = msgspec.structs.replace(HERE, id="c4", addresses=("10.77.0.5/32",), host_ifname="lsr4")
            stage.member.endpoints[first.identity] = first
            stage.enforcement.note(first.identity)
            await stage.enforcement.enforce()
            assert stage.cuts == cuts + 2, "there were no policies when its attach began"

    asyncio.run(main())


def test_whoever_may_go_by_a_name_has_its_server_asked(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if another policy, or a changed one, lets it go by a name that was followed before."""
    monkeypatch.setattr(policy_names, "_read", lambda _names: [])
    out = Policy(
        name="out", select=Selector(names=("nobody",)), egress=(Rule(peers=(Peer(dns=("*.example.com",)),)),)
    )

    def unserved() -> list[str]:
        return [text for text in stage.names.problems() if "network demo has no name server" in text]

    async def main() -> None:
        async with stage.running():
            await stage.apply(out)
            assert unserved() == []
            await stage.apply(msgspec.structs.replace(out, select=Selector(names=("web",))))
            assert len(unserved()) == 1

    asyncio.run(main())


BRIDGED = msgspec.structs.replace(
    network("bridge"), name="br", pools=("10.78.0.0/24",), gateways=("10.78.0.1/24",), policy="default-deny"
)
PORT = msgspec.structs.replace(
    HERE, network="br", addresses=("10.78.0.2/24",), host_ifname="lsp1", mac="02:00:00:00:00:02"
)
FILTER = BridgeFilter(BRIDGED.bridge)


def bridged(stage: Stage) -> None:
    """Make the bridge of the network."""
    stage.machine.reconciler.change(("network", "br"), [Bridge(BRIDGED.bridge, b"\2\0\0\0\0\1", 1500)])


def test_a_default_that_cannot_be_enforced_is_told_and_counts_once_it_can(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reboot br_netfilter may be missing: no event tells of the module, which comes while the agent runs."""
    loaded: list[bool] = []
    monkeypatch.setattr(bridge_filters, "available", lambda: bool(loaded))
    stage.member.endpoints[PORT.identity] = PORT

    async def main() -> None:
        async with stage.running():
            bridged(stage)
            await stage.member.replica.write({"networks/br": BRIDGED})
            stage.member.networks.refresh()
            stage.enforcement.start()
            try:
                await stage.enforcement.enforce()
                (told,) = stage.enforcement.unenforced()
                assert told.startswith("network br: default of network br does not protect web: ")
                assert "br_netfilter is not loaded" in told
                assert FILTER.key not in stage.machine.driver.states
                loaded.append(True)
                stage.enforcement.look_at_module()
                await eventually(lambda: FILTER.key in stage.machine.driver.states, "its frames pass the rules")
                assert stage.addresses("policed_in4") == {"10.78.0.2"}
                assert stage.addresses("filtered_ports") == {"lsp1"}
                assert stage.enforcement.unenforced() == []
            finally:
                await stage.enforcement.stop()

    asyncio.run(main())


def test_the_first_container_of_a_network_waits_until_its_bridge_is_filtered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its network crosses no hosts, and something else is refused; a filter that is refused is an error."""
    monkeypatch.setattr(bridge_filters, "available", lambda: True)

    async def main() -> None:
        async with stage.running():
            await stage.apply(WEB)
            stage.machine.refused = {"10.77.0.2"}
            stage.enforcement.note(HERE.identity)
            await stage.member.replica.write({"networks/br": BRIDGED})
            stage.member.networks.refresh()
            bridged(stage)
            stage.machine.unable = {FILTER.key}
            with pytest.raises(KernelError, match="refused"):
                await stage.enforcement.cover(BRIDGED)
            stage.machine.unable = set()
            stage.machine.reconciler.resync([BridgeFilter])
            await stage.enforcement.cover(BRIDGED)
            assert FILTER.key in stage.machine.driver.states
            found = {one.set for one in stage.enforcement.elements(PORT) if isinstance(one, NftElement)}
            assert {"policed_in4", "filtered_ports", "receivers4"} <= found

    asyncio.run(main())


BASE = NftChain("inet", "linkspan", "policy_in", "", ()).key


def test_no_container_comes_while_the_rules_of_all_policies_are_refused(stage: Stage) -> None:
    """Each try says so until the healer has put them, though the second one finds nothing to change."""

    async def main() -> None:
        async with stage.running():
            stage.machine.unable = {BASE}
            with pytest.raises(KernelError, match="refused"):
                await stage.apply(WEB)
            for _ in range(2):
                with pytest.raises(KernelError, match="refused"):
                    await stage.enforcement.cover(NET)
            stage.machine.unable = set()
            stage.machine.reconciler.resync([NftChain])
            await stage.enforcement.cover(NET)

    asyncio.run(main())


def test_a_policy_that_is_refused_closes_nobody_but_whom_it_selects(stage: Stage) -> None:
    """No port goes down: its containers are dropped, because they lose their way; rules that all need are guards."""
    reconciler = stage.machine.reconciler
    ways = ("policy_in4_", "policed_by_in4")

    def refused() -> set[Key]:
        named = ((key, str(key[3])) for key in reconciler.desired.states((NftChain,)))
        return {key for key, name in named if name.startswith("policy_in4_") and "_by_" not in name}

    async def main() -> None:
        async with stage.running():
            await stage.apply(WEB)
            chains = refused()
            await stage.member.replica.write({}, deletes=["policies/web"])
            await stage.enforcement.enforce()
            stage.machine.unable = chains
            with pytest.raises(KernelError, match="refused"):
                await stage.apply(WEB)
            for _ in range(2):
                failed = reconciler.resync([NftTable, NftSet, NftChain, NftElement]).failed
                assert {str(key[3]) for key in failed if str(key[3]).startswith(ways)}
                assert reconciler.fights.closed() == set()
            assert "10.77.0.2" in stage.addresses("policed_in4"), "its packets go to the chains of policies"
            assert "10.77.0.2" not in stage.addresses("policed_by_in4"), "where no way leads on"
            stage.machine.unable = {BASE}
            del stage.machine.driver.states[BASE]
            reconciler.resync([NftTable, NftSet, NftChain, NftElement])
            assert reconciler.fights.closed() == {ALL}

    asyncio.run(main())


def test_rules_of_staged_policies_that_are_refused_keep_no_container_away(stage: Stage) -> None:
    """They only count, and those of the others are in force."""

    async def main() -> None:
        async with stage.running():
            stage.machine.unable = {NftChain("inet", "linkspan", "staged_in", "", ()).key}
            await stage.member.replica.write({"staged/later": msgspec.structs.replace(WEB, name="later")})
            with pytest.raises(KernelError, match="refused"):
                await stage.apply(WEB)
            await stage.enforcement.cover(NET)
            assert BASE in stage.machine.driver.states

    asyncio.run(main())


def test_a_container_waits_for_rules_whose_change_was_broken_off(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it may have reached the kernel."""

    def broken(*_args: object) -> None:
        raise Unavailable("the worker stopped")

    async def main() -> None:
        async with stage.running():
            with monkeypatch.context() as away:
                away.setattr(stage.machine.reconciler, "changes", broken)
                with pytest.raises(Unavailable):
                    await stage.apply(WEB)
                with pytest.raises(Unavailable):
                    await stage.enforcement.cover(NET)
            await stage.enforcement.cover(NET)
            assert BASE in stage.machine.driver.states

    asyncio.run(main())


def test_an_agent_that_starts_wants_the_guard_of_ports_from_the_first_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoints are taken over before the rules; a resync in between would remove what is not wanted."""
    monkeypatch.setattr(bridge_filters, "available", lambda: True)

    async def main() -> None:
        async with stage.running():
            await stage.member.replica.write({"networks/br": BRIDGED})
            stage.member.networks.refresh()
            stage.enforcement.learn()
            found = {one.set for one in stage.enforcement.elements(PORT) if isinstance(one, NftElement)}
            assert {"filtered_ports", "receivers4"} <= found

    asyncio.run(main())


def test_ports_of_a_container_on_the_hosts_own_network_are_under_its_policies(stage: Stage) -> None:
    """By both families, whichever pools there are; without a port nothing protects it, and that is told."""
    shared = msgspec.structs.replace(network("host"), name="shared", pools=(), gateways=(), backend="host")
    port = Port("", 8443, 8443, "tcp")
    one = msgspec.structs.replace(HERE, id="c9", network="shared", addresses=(), host_ifname="", ports=(port,))

    async def main() -> None:
        async with stage.running():
            stage.member.endpoints[one.identity] = one
            await stage.member.replica.write({"networks/shared": shared})
            stage.member.networks.refresh()
            await stage.enforcement.cover(shared)
            await stage.apply(WEB)
            ports = {(s.set, *s.parts) for s in stage.machine.driver.states.values() if isinstance(s, NftElement)}
            for family in (4, 6):
                assert {(f"policed_port{family}", "tcp", "8443"), (f"policed_by_port{family}", "tcp", "8443")} <= ports
            assert stage.enforcement.unenforced() == []
            cuts = stage.cuts
            other = msgspec.structs.replace(one, id="c8", ports=(Port("", 53, 53, "udp"),))
            stage.member.endpoints[other.identity] = other
            for expected in (cuts + 1, cuts + 1):
                stage.enforcement.note(other.identity)
                await stage.enforcement.enforce()
                assert stage.cuts == expected, "whoever had the port before may have flows"
            del stage.member.endpoints[other.identity]
            stage.enforcement.note(other.identity)
            await stage.enforcement.enforce()
            cuts = stage.cuts
            stage.member.endpoints[one.identity] = msgspec.structs.replace(one, name="other")
            stage.enforcement.note(one.identity)
            await stage.enforcement.enforce()
            assert not stage.addresses("policed_port")
            assert stage.cuts == cuts + 1, "another label may forbid flows"
            stage.member.endpoints[one.identity] = msgspec.structs.replace(one, ports=())
            (told,) = stage.enforcement.unenforced()
            assert told.startswith("network shared: policy web does not protect web: it publishes no port")

    asyncio.run(main())


def test_a_staged_policy_is_counted_and_not_enforced(stage: Stage) -> None:
    """Its endpoints are watched; they are policed once it is enforced."""

    async def main() -> None:
        async with stage.running():
            await stage.member.replica.write({"staged/web": WEB})
            await stage.enforcement.enforce()
            assert stage.addresses("watched_in4") == {"10.77.0.2"}
            assert stage.addresses("policed_") == set()
            await stage.member.replica.write({"policies/web": WEB}, deletes=["staged/web"])
            await stage.enforcement.enforce()
            assert stage.addresses("watched_in4") == set()
            assert stage.addresses("policed_in4") == {"10.77.0.2"}

    asyncio.run(main())
