"""Listing of our tables: after each transaction of anybody, and not otherwise."""

from __future__ import annotations

import pytest

from linkspan.core.states.host import HOST, NftChain, NftElement, NftLinkChain
from linkspan.kernel.drivers import nftables_objects
from linkspan.kernel.drivers.nftables_objects import FirewallDriver


class Ruleset:
    """A table with one set, as libnftables lists it; each change counts one generation."""

    def __init__(self) -> None:
        self.generation = 1
        self.elements = ["10.0.0.1"]
        self.listed = 0
        self.meanwhile = False
        """Whether somebody changes it while it is listed."""
        self.flags: list[str] = []
        self.chains: dict[str, str] = {}
        """The chains' rules, as they are listed."""

    def put(self, element: str) -> None:
        """Add an element."""
        self.elements.append(element)
        self.generation += 1

    def json(self, _command: str) -> list[dict[str, dict[str, object]]]:
        """List it."""
        self.listed += 1
        found: dict[str, object] = {
            "family": "inet", "table": "linkspan", "name": "own4", "type": "ipv4_addr", "elem": [*self.elements]
        }  # fmt: skip
        if self.meanwhile:
            self.generation += 1
        return [{"table": {"family": "inet", "name": "linkspan", "flags": self.flags}}, {"set": found}]

    def text(self, command: str) -> str:
        """List its chains."""
        family = command.split()[2]
        listed = (f"\tchain {name} {{\n\t\t{rule}\n\t}}\n" for name, rule in self.chains.items())
        return f"table {family} linkspan {{\n{''.join(listed)}}}\n"

    def run(self, commands: str) -> str:
        """Add and delete chains; a rule is listed with its address as a number."""
        if commands.startswith("describe"):
            return ""
        for verb, what, _, _, name, *rule in map(str.split, commands.splitlines()):
            if (verb, what) == ("add", "rule"):
                self.chains[name] = " ".join(rule).replace("localhost", "127.0.0.1")
            elif verb == "delete":
                del self.chains[name]
        self.generation += 1
        return ""


@pytest.fixture
def ruleset(monkeypatch: pytest.MonkeyPatch) -> Ruleset:
    """Let the driver see this ruleset."""
    ruleset = Ruleset()
    monkeypatch.setattr(nftables_objects, "TABLES", (("inet", "linkspan"),))
    monkeypatch.setattr(nftables_objects, "Nft", lambda: ruleset)
    monkeypatch.setattr(nftables_objects, "netfilter_socket", lambda: None)
    monkeypatch.setattr(nftables_objects, "table_exists", lambda *_: True)
    monkeypatch.setattr(nftables_objects, "generation", lambda _: ruleset.generation)
    return ruleset


def _elements(driver: FirewallDriver) -> set[str]:
    return {state.parts[0] for state in driver.observe(HOST) if isinstance(state, NftElement)}


def test_a_ruleset_without_a_transaction_is_listed_once(ruleset: Ruleset) -> None:
    """The kernel's generation shows that nothing has changed."""
    driver = FirewallDriver()
    assert _elements(driver) == _elements(driver) == {"10.0.0.1"}
    assert ruleset.listed == 1


def test_a_transaction_is_seen_whoever_made_it(ruleset: Ruleset) -> None:
    """The earlier listing is invalid, though no event came."""
    driver = FirewallDriver()
    _elements(driver)
    ruleset.put("10.0.0.2")
    assert _elements(driver) == {"10.0.0.1", "10.0.0.2"}


def test_a_ruleset_that_changes_while_it_is_listed_is_listed_again(ruleset: Ruleset) -> None:
    """One part of such a list may be older than another, so it is not kept."""
    driver = FirewallDriver()
    ruleset.meanwhile = True
    _elements(driver)
    ruleset.meanwhile = False
    ruleset.elements.append("10.0.0.3")  # by that change
    assert "10.0.0.3" in _elements(driver)


def test_a_table_that_goes_with_its_owner_is_looked_for_each_time(ruleset: Ruleset) -> None:
    """The kernel deletes it with the owner's socket, and counts no transaction."""
    driver = FirewallDriver()
    ruleset.flags = ["owner", "persist"]
    assert _elements(driver) == {"10.0.0.1"}
    ruleset.elements.clear()
    assert _elements(driver) == set()


def test_the_listing_of_a_chain_that_is_gone_is_forgotten(ruleset: Ruleset) -> None:
    """Chains come and go with policies, for as long as an agent runs; those that are there are as they were put."""
    driver = FirewallDriver()
    every = [NftChain("inet", "linkspan", f"policy_{n}", "", ("ip saddr localhost accept",)) for n in range(20)]
    for chain in every:
        assert driver.apply([chain], ()) == {}
        assert chain in driver.observe(HOST)
        if chain is not every[-1]:
            assert driver.apply((), [chain]) == {}
    assert [one for one in driver.observe(HOST) if isinstance(one, NftChain)] == every[-1:]
    assert driver._renderings.keys() == {every[-1].key}


def test_a_link_that_is_replaced_while_it_is_listed_is_listed_again(
    ruleset: Ruleset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chain has gone with the former link, which is no transaction."""
    links = {"lsr1": 5}
    text = ruleset.text

    def meanwhile(command: str) -> str:
        links["lsr1"] = 6
        return text(command)

    monkeypatch.setattr(nftables_objects, "TABLES", (("netdev", "linkspan"),))
    monkeypatch.setattr(nftables_objects, "_every_index", links.copy)
    monkeypatch.setattr(nftables_objects, "link_index", links.__getitem__)
    monkeypatch.setattr(ruleset, "text", meanwhile)
    driver = FirewallDriver()
    ruleset.chains["lsr1"] = "accept"
    assert [one.name for one in driver.observe(HOST) if isinstance(one, NftLinkChain)] == ["lsr1"]
    ruleset.chains.clear()
    assert not any(isinstance(one, NftLinkChain) for one in driver.observe(HOST))
    ruleset.chains["lsr1"] = "accept"
    assert not any(isinstance(one, NftLinkChain) for one in driver.observe(HOST)), "nothing has changed since"
