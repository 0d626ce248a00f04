"""Elements of plain sets by nfnetlink: the same as nft's own."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.host_view import Facts
from linkspan.core.ruleset import element, skeleton, tunnel_peer, tunnel_port
from linkspan.core.states.host import NftChain, NftElement, NftSet
from linkspan.kernel.drivers.nftables_objects import FirewallDriver
from linkspan.kernel.io.nftables import Nft, generation, netfilter_socket
from linkspan.kernel.kinds import kinds
from support.netns.machine_fixtures import fresh_namespace, inside, run
from support.polling import SHARED, until

PUBLISHED = element("publish4", "sctp", "8080", data=("10.244.0.2", "80"))
ELEMENTS = (
    element("macs", "lsp0123456789ab", "02:00:0a:f4:00:02", table="bridge"),
    element("senders4", "lsp0123456789ab", "02:00:0a:f4:00:02", "10.244.0.2", table="bridge"),
    element("senders6", "lsp0123456789ab", "02:00:0a:f4:00:02", "fd00::2", table="bridge"),
    element("internal_links", "ls-demo"),
    tunnel_port("udp", 4789),
    tunnel_peer(prefix("192.0.2.2"), "udp", 4789),
    tunnel_peer(prefix("2001:db8::2"), "sctp", 9899),
    PUBLISHED,
    element("publish_at6", "2001:db8::1", "udp", "53", data=("fd00::2", "5353")),
)


@pytest.fixture
def firewall() -> Iterator[tuple[str, FirewallDriver]]:
    """Return the driver inside a host's namespace with the skeleton."""
    with fresh_namespace() as netns, inside(netns):
        driver = FirewallDriver()
        assert driver.apply(list(skeleton(Facts(), kinds())), ()) == {}
        try:
            yield netns, driver
        finally:
            driver.close()


@pytest.mark.parametrize("wanted", ELEMENTS, ids=lambda e: e.set)
def test_an_element_is_observed_as_it_was_put(firewall: tuple[str, FirewallDriver], wanted: NftElement) -> None:
    """Every type of part is packed so that nft lists the element as in the state; a second put succeeds."""
    _, driver = firewall
    assert driver.apply([wanted], ()) == {}
    assert driver.apply([wanted], ()) == {}
    assert [s for s in driver.observe(0) if isinstance(s, NftElement)] == [wanted]
    assert driver.apply((), [wanted]) == {}
    assert not [s for s in driver.observe(0) if isinstance(s, NftElement)]


def test_a_delete_of_what_is_gone_is_done(firewall: tuple[str, FirewallDriver]) -> None:
    """One of two elements is gone already: the other is deleted, and the delete succeeds."""
    _, driver = firewall
    assert driver.apply(ELEMENTS[:1], ()) == {}
    assert driver.apply((), ELEMENTS[:2]) == {}
    assert not [s for s in driver.observe(0) if isinstance(s, NftElement)]


def elements(driver: FirewallDriver) -> set[NftElement]:
    """Return the elements that the kernel shows."""
    return {state for state in driver.observe(0) if isinstance(state, NftElement)}


def test_thousands_of_elements_are_one_transaction(firewall: tuple[str, FirewallDriver]) -> None:
    """A host learns of a thousand peers at once; all come, and all go, also where one is gone already."""
    _, driver = firewall
    peers = [f"172.16.{n >> 8}.{n & 255}" for n in range(4000)]
    found = [element("tunnel_peers4", one, "udp", "4789") for one in peers]
    found += [element("vteps4", "lsx64", "02:00:00:00:00:01", one) for one in peers]
    asked = netfilter_socket()
    try:
        for put, delete, transactions in ((found, [], 1), ([], found, 1), (found, [], 1), ([], found[1:], 1)):
            before = generation(asked)
            assert driver.apply(put, delete) == {}
            assert generation(asked) == before + transactions
            # The kernel resizes a set in the background, and a dump may miss elements meanwhile.
            expected = set(put or set(found) - set(delete))
            until(lambda expected=expected: elements(driver) == expected, "they are seen", 10 * SHARED)
        assert driver.apply(found[1:4000], ()) == {}
        before = generation(asked)
        assert driver.apply((), found) == {}
        assert generation(asked) == before + 1, "what is gone is left out, and the others go at once"
    finally:
        asked.close()


def test_what_does_not_fit_the_socket_goes_by_libnftables(firewall: tuple[str, FirewallDriver]) -> None:
    """Root of a user namespace cannot have a larger buffer than net.core.wmem_max."""
    _, driver = firewall
    driver._netfilter._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    found = [element("vteps4", "lsx64", "02:00:00:00:00:01", f"172.16.{n >> 8}.{n & 255}") for n in range(2000)]
    assert driver.apply(found, ()) == {}
    assert {s for s in driver.observe(0) if isinstance(s, NftElement)} == set(found)
    assert driver.apply((), found) == {}
    assert not [s for s in driver.observe(0) if isinstance(s, NftElement)]


def test_changed_data_replaces_the_element(firewall: tuple[str, FirewallDriver]) -> None:
    """A port that leads to another address now is changed, not refused."""
    _, driver = firewall
    other = element("publish4", "sctp", "8080", data=("10.244.0.3", "81"))
    assert driver.apply([PUBLISHED], ()) == {}
    assert driver.apply([other], ()) == {}
    assert [s for s in driver.observe(0) if isinstance(s, NftElement)] == [other]


def test_an_element_of_a_table_that_is_gone_is_an_error_that_names_it(firewall: tuple[str, FirewallDriver]) -> None:
    """After `nft flush ruleset` the put fails with the element's name, for the next pass to repair."""
    netns, driver = firewall
    run("nft", "flush", "ruleset", netns=netns)
    (error,) = driver.apply([ELEMENTS[0]], ()).values()
    assert "lsp0123456789ab" in error.message


@pytest.mark.parametrize("listing", ["json", "text"])
def test_a_table_that_somebody_deletes_meanwhile_is_not_there(
    firewall: tuple[str, FirewallDriver], monkeypatch: pytest.MonkeyPatch, listing: str
) -> None:
    """A table may go between two questions to the kernel: its objects are then missing, without an error."""
    netns, driver = firewall
    list_it = getattr(Nft, listing)

    def deleted_first(nft: Nft, command: str) -> object:
        run("ip", "netns", "exec", netns, "nft", "delete", *command.removeprefix("list ").split())
        return list_it(nft, command)

    assert any(isinstance(s, NftChain) for s in driver.observe(0))
    assert driver.apply(ELEMENTS[:1], ()) == {}  # after a transaction all is listed again
    monkeypatch.setattr(Nft, listing, deleted_first)
    assert not any(isinstance(s, NftChain) for s in driver.observe(0))
    assert driver.apply(list(skeleton(Facts(), kinds())), ()) == {}


CHAINS = [NftChain("inet", "linkspan", name, "", ("accept",)) for name in ("one", "two")]
WAYS = NftSet("inet", "linkspan", "leads4", "ipv4_addr", "verdict")


def _way(number: int) -> NftElement:
    return element("leads4", "10.0.0.1", data=(f"goto {CHAINS[number].name}",))


def test_a_verdict_map_leads_somewhere_else_within_one_transaction(firewall: tuple[str, FirewallDriver]) -> None:
    """No packet meets a map without the element; a driver that does not know where it led finds out."""
    _, driver = firewall
    assert driver.apply([WAYS, *CHAINS, _way(0)], ()) == {}
    asked, later = netfilter_socket(), FirewallDriver()
    try:
        before = generation(asked)
        assert driver.apply([_way(1)], ()) == {}
        assert generation(asked) == before + 1
        assert [s for s in driver.observe(0) if isinstance(s, NftElement)] == [_way(1)]
        assert later.apply([_way(0)], ()) == {}
        assert [s for s in later.observe(0) if isinstance(s, NftElement)] == [_way(0)]
        assert later.apply((), [_way(0), *CHAINS, WAYS]) == {}
        assert not [s for s in later.observe(0) if s in (WAYS, *CHAINS)]
    finally:
        asked.close()
        later.close()


def test_a_new_agent_needs_no_libnftables_for_an_element(
    firewall: tuple[str, FirewallDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the sets as it would put them, so it puts none; from the listing it knows how they are laid out."""
    later = FirewallDriver()
    try:
        assert later.observe(0)
        monkeypatch.setattr(Nft, "run", lambda _nft, commands: pytest.fail(f"libnftables: {commands}"))
        assert later.apply([PUBLISHED], ()) == {}
        assert later.apply((), [PUBLISHED]) == {}
    finally:
        later.close()


def test_a_chain_of_verdicts_is_listed_as_it_was_put(
    firewall: tuple[str, FirewallDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no libnftables, also where it goes while its way is changed; one that is there already is put anew."""
    _, driver = firewall
    rules = ('jump one comment "policy web-1.x"', 'goto two comment "default of network x"', "accept")
    first, second = (NftChain("inet", "linkspan", f"by_{n}", "", rules[n:]) for n in (0, 1))
    ways = [element("leads4", "10.0.0.1", data=(f"goto {chain.name}",)) for chain in (first, second)]
    assert driver.apply([WAYS, *CHAINS], ()) == {}
    with monkeypatch.context() as alone:
        alone.setattr(Nft, "run", lambda _nft, commands: pytest.fail(f"libnftables: {commands}"))
        assert driver.apply([first, ways[0]], ()) == {}
        assert driver.apply([second, ways[1]], ()) == {}
        assert driver.apply((), [first]) == {}
    later = FirewallDriver()
    try:
        there = list(later.observe(0))
        assert [state for state in there if state in (first, second, *ways)] == [second, ways[1]]
    finally:
        later.close()
    assert driver.apply([second], ()) == {}
    assert driver.apply((), [ways[1], second, *CHAINS, WAYS]) == {}


def test_many_elements_of_a_new_set_are_there_before_the_rule_that_uses_it(
    firewall: tuple[str, FirewallDriver]
) -> None:
    """Sets, then elements, then rules; they go in one transaction, because the elements go with the set."""
    _, driver = firewall
    peers = NftSet("inet", "linkspan", "peers4", "ipv4_addr")
    using = NftChain("inet", "linkspan", "using", "", ("ip saddr @peers4 accept",))
    found = [element("peers4", f"10.{n >> 8}.{n & 255}.1") for n in range(10_000)]
    wanted = {peers, using, *found}
    asked = netfilter_socket()
    try:
        for put, delete, transactions in (([peers, using, *found], [], 3), ([], [*found, using, peers], 1)):
            before = generation(asked)
            assert driver.apply(put, delete) == {}
            assert generation(asked) == before + transactions
            assert {s for s in driver.observe(0) if s in wanted} == set(put)
    finally:
        asked.close()


def test_one_element_that_cannot_be_stops_no_other(firewall: tuple[str, FirewallDriver]) -> None:
    """A map's element that leads to no chain is refused by name; what was with it is there."""
    _, driver = firewall
    lost = element("leads4", "10.0.0.2", data=("goto nowhere",))
    assert driver.apply([WAYS, *CHAINS], ()) == {}
    failed = driver.apply([_way(0), lost], ())
    assert list(failed) == [lost.key]
    assert [s for s in driver.observe(0) if isinstance(s, NftElement)] == [_way(0)]
