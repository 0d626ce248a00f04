from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.errors import NotFound
from linkspan.core.states.host import HOST, ForwardAccept
from linkspan.kernel.drivers.iptables import IN_PART, IptablesDriver
from linkspan.kernel.drivers.sysctl import SysctlDriver
from linkspan.kernel.facts import observe_facts
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.probe import foreign_chains
from support.netns.machine_fixtures import inode, joined, needs, pings, run
from support.polling import until

POOLS = {4: prefix("10.99.1.0/24"), 6: prefix("fd99:1::/64")}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
VARIANTS = pytest.mark.parametrize("variant", ["nft", "legacy"])


def command(family: int, variant: str) -> str:
    """Return the command, or skip: neither the tool nor the kernel's part is everywhere."""
    name = f"{'iptables' if family == 4 else 'ip6tables'}-{variant}"
    needs(name)
    if variant == "legacy" and not Path("/proc/net/ip_tables_names").exists():
        pytest.skip("this kernel has no legacy iptables")
    return name


def like_docker(tool: str) -> None:
    """Set FORWARD to DROP and make DOCKER-USER, as Docker does."""
    run(tool, "-P", "FORWARD", "DROP")
    run(tool, "-N", "DOCKER-USER")
    run(tool, "-A", "DOCKER-USER", "-j", "RETURN")
    run(tool, "-I", "FORWARD", "-j", "DOCKER-USER")


@VARIANTS
@FAMILIES
def test_ours_stand_in_docker_user_and_others_stay(machine: str, family: int, variant: str) -> None:
    """Put, observe, a second put changes nothing, delete: and the chain is as Docker made it."""
    tool = command(family, variant)
    like_docker(tool)
    before = run(tool, "-S")
    driver = IptablesDriver()
    wanted = ForwardAccept("DOCKER-USER", POOLS[family])
    assert list(driver.observe(HOST)) == []
    assert driver.apply([wanted], []) == {}
    assert list(driver.observe(HOST)) == [wanted]
    listed = run(tool, "-S", "DOCKER-USER").splitlines()
    assert len(listed) == 4
    assert listed[-1].endswith("-j RETURN"), "ours come first"
    assert driver.apply([wanted], []) == {}
    assert run(tool, "-S", "DOCKER-USER").splitlines() == listed
    assert list(IptablesDriver().observe(inode(machine))) == [], "the kind lives on the host only"
    assert driver.apply([], [wanted]) == {}
    assert run(tool, "-S") == before
    assert driver.apply([], [wanted]) == {}


@VARIANTS
@FAMILIES
def test_traffic_of_the_pool_passes_a_forward_policy_of_drop(
    machine: str, container: str, outside: str, family: int, variant: str
) -> None:
    """Not without ours, with ours both ways, and after a flush of DOCKER-USER not again until they are put."""
    tool = command(family, variant)
    joined(container, "c0", 1)
    joined(outside, "o0", 2)
    address = {4: "10.99.2.2", 6: "fd99:2::2"}[family]
    until(lambda: pings(container, address), "the way without a firewall", 40)
    like_docker(tool)
    driver = IptablesDriver()
    wanted = ForwardAccept("DOCKER-USER", POOLS[family])
    assert not pings(container, address)
    driver.apply([wanted], [])
    assert pings(container, address)
    assert pings(outside, {4: "10.99.1.2", 6: "fd99:1::2"}[family])
    run(tool, "-F", "DOCKER-USER")
    assert list(driver.observe(HOST)) == []
    assert not pings(container, address)
    driver.apply([wanted], [])
    assert list(driver.observe(HOST)) == [wanted]
    assert pings(container, address)


@FAMILIES
def test_half_a_pair_is_observed_as_such_and_put_or_taken_away(machine: str, family: int) -> None:
    """A rule deleted by hand: a put completes the pair, and a delete removes the rest."""
    tool = command(family, "nft")
    like_docker(tool)
    driver = IptablesDriver()
    wanted = ForwardAccept("DOCKER-USER", POOLS[family])
    part = ForwardAccept("DOCKER-USER" + IN_PART, POOLS[family])
    driver.apply([wanted], [])
    run(tool, "-D", "DOCKER-USER", "1")
    assert list(driver.observe(HOST)) == [part]
    assert driver.apply([wanted], [part]) == {}
    assert list(driver.observe(HOST)) == [wanted]
    run(tool, "-D", "DOCKER-USER", "1")
    assert driver.apply([], [part]) == {}
    assert list(driver.observe(HOST)) == []
    assert "linkspan" not in run(tool, "-S")


@FAMILIES
def test_both_variants_get_the_rules_where_both_have_the_chain(machine: str, family: int) -> None:
    """Every table sees every packet: present means present in both."""
    tools = [command(family, variant) for variant in ("nft", "legacy")]
    for tool in tools:
        run(tool, "-P", "FORWARD", "DROP")
    driver = IptablesDriver()
    wanted = ForwardAccept("FORWARD", POOLS[family])
    assert driver.apply([wanted], []) == {}
    assert list(driver.observe(HOST)) == [wanted]
    run(tools[0], "-F", "FORWARD")
    assert list(driver.observe(HOST)) != [wanted]
    driver.apply([wanted], [])
    assert list(driver.observe(HOST)) == [wanted]
    driver.apply([], [wanted])
    assert not any("linkspan" in run(tool, "-S") for tool in tools)


def test_no_table_is_made_by_looking_or_by_a_put(machine: str, spaces: Namespaces, tmp_path: Path) -> None:
    """In a namespace without iptables nothing is observed, a put is an error, and no table is there after."""
    driver = IptablesDriver()
    wanted = ForwardAccept("FORWARD", POOLS[4])
    assert list(driver.observe(HOST)) == []
    assert isinstance(driver.apply([wanted], [])[wanted.key], NotFound)
    assert driver.apply([], [wanted]) == {}
    facts = observe_facts(SysctlDriver(spaces, tmp_path / "m"))
    assert facts.forward_chains == frozenset()
    assert foreign_chains.nft_chains() == []
    assert not foreign_chains.legacy(4)
    assert not foreign_chains.legacy(6)


def test_others_rules_with_odd_comments_do_no_harm(machine: str) -> None:
    """Quotes, blanks and a name like ours in a foreign comment."""
    tool = command(4, "nft")
    for comment in ('it\'s "mine"', "linkspan: not a pool", "'", "a b"):
        run(tool, "-A", "FORWARD", "-m", "comment", "--comment", comment, "-j", "ACCEPT")
    before = run(tool, "-S")
    driver = IptablesDriver()
    wanted = ForwardAccept("FORWARD", POOLS[4])
    assert driver.apply([wanted], []) == {}
    assert list(driver.observe(HOST)) == [wanted]
    assert driver.apply([], [wanted]) == {}
    assert run(tool, "-S") == before


def test_a_pool_of_several_is_told_from_the_others(machine: str) -> None:
    """One pool's delete leaves the other's rules, and a rule of a user's with another comment."""
    tool = command(4, "nft")
    run(tool, "-P", "FORWARD", "DROP")
    run(tool, "-A", "FORWARD", "-s", "10.99.1.0/24", "-m", "comment", "--comment", "mine", "-j", "ACCEPT")
    before = run(tool, "-S")
    one, two = (ForwardAccept("FORWARD", pool) for pool in (POOLS[4], prefix("10.98.0.0/16")))
    driver = IptablesDriver()
    driver.apply([one, two], [])
    assert set(driver.observe(HOST)) == {one, two}
    driver.apply([], [one])
    assert list(driver.observe(HOST)) == [two]
    driver.apply([], [two])
    assert run(tool, "-S") == before


@VARIANTS
@FAMILIES
def test_facts_name_the_chain_that_decides(
    machine: str, spaces: Namespaces, tmp_path: Path, family: int, variant: str
) -> None:
    """Nothing for an empty FORWARD, FORWARD for rules or DROP in it, DOCKER-USER if it is called."""
    tool = command(family, variant)
    sysctls = SysctlDriver(spaces, tmp_path / "m")

    def found() -> set[tuple[int, str]]:
        return set(observe_facts(sysctls).forward_chains)

    run(tool, "-P", "FORWARD", "ACCEPT")
    assert found() == set()
    IptablesDriver().apply([ForwardAccept("FORWARD", POOLS[family])], [])
    assert found() == set(), "our own rules alone do not count"
    run(tool, "-A", "FORWARD", "-d", _example(family), "-j", "DROP")
    assert found() == {(family, "FORWARD")}
    run(tool, "-F", "FORWARD")
    run(tool, "-P", "FORWARD", "DROP")
    assert found() == {(family, "FORWARD")}
    run(tool, "-N", "DOCKER-USER")
    assert found() == {(family, "FORWARD")}, "a chain that nobody calls decides nothing"
    run(tool, "-I", "FORWARD", "-j", "DOCKER-USER")
    assert found() == {(family, "DOCKER-USER")}


def _example(family: int) -> str:
    return {4: "192.0.2.0/24", 6: "2001:db8::/32"}[family]


def test_a_machine_without_the_command_has_nothing_to_observe(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If iptables is not installed, native tables named filter do no harm."""
    needs("nft")
    nft = shutil.which("nft")
    run(str(nft), "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; }")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(IptablesDriver().observe(HOST)) == []
    assert IptablesDriver().probe().by == ""


def test_a_table_that_the_command_cannot_use_is_an_error_and_stays(machine: str) -> None:
    """A native table that is named as iptables' but is not like it: the put says so, and it is as before."""
    tool = command(4, "nft")
    needs("nft")
    run(
        "nft",
        "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 5; policy drop; }",
    )
    before = run("nft", "list", "ruleset")
    driver = IptablesDriver()
    wanted = ForwardAccept("FORWARD", POOLS[4])
    assert list(driver.observe(HOST)) == []
    error = driver.apply([wanted], [])[wanted.key]
    assert tool in error.message
    assert driver.apply([], [wanted]) == {}
    assert run("nft", "list", "ruleset") == before
