"""IPAM: which addresses a pool gives, in which order, and which it never gives."""

from __future__ import annotations

import time

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from linkspan.core.addresses import Prefix, pool, prefix
from linkspan.core.errors import Conflict, Exhausted, Invalid, NotFound
from linkspan.core.ipam import REMEMBERED, Block, gateway, usable


def one(text: str) -> Prefix:
    """Parse an address alone."""
    return prefix(text).single()


def drained(block: Block) -> list[str]:
    """Allocate until nothing is left; the addresses in their order."""
    given = []
    while True:
        try:
            given.append(block.allocate(0.0, "drain").address.address)
        except Exhausted:
            return given


@pytest.mark.parametrize(
    ("text", "routed", "expected_gateway", "given"),
    [
        ("10.0.0.0/29", False, "10.0.0.1/29", [f"10.0.0.{i}" for i in range(2, 7)]),
        ("10.0.0.0/29", True, "10.0.0.1/32", [f"10.0.0.{i}" for i in range(2, 7)]),
        ("10.0.0.0/30", False, "10.0.0.1/30", ["10.0.0.2"]),
        ("10.0.0.4/31", False, "10.0.0.4/31", ["10.0.0.5"]),
        ("10.0.0.4/31", True, "169.254.1.1/32", ["10.0.0.4", "10.0.0.5"]),
        ("10.0.0.7/32", True, "169.254.1.1/32", ["10.0.0.7"]),
        ("fd00::/126", False, "fd00::1/126", ["fd00::2", "fd00::3"]),
        ("fd00::/126", True, "fd00::1/128", ["fd00::2", "fd00::3"]),
        ("fd00::8/127", False, "fd00::8/127", ["fd00::9"]),
        ("fd00::8/127", True, "fe80::1/128", ["fd00::8", "fd00::9"]),
        ("fd00::8/128", True, "fe80::1/128", ["fd00::8"]),
    ],
)
def test_a_pool_gives_its_usable_addresses_once(
    text: str, routed: bool, expected_gateway: str, given: list[str]
) -> None:
    """Network, gateway, broadcast and anycast addresses are left out; every other one is given, in order."""
    block = Block(pool(text), routed=routed)
    assert str(gateway(pool(text), routed)) == expected_gateway
    assert block.free(0.0) == len(given)
    assert drained(block) == given
    assert block.free(0.0) == 0


@pytest.mark.parametrize("text", ["10.0.0.7/32", "fd00::7/128"])
def test_a_bridge_refuses_a_pool_of_one_address(text: str) -> None:
    """The error says what to use instead."""
    with pytest.raises(Invalid, match=r"one address, and a bridge needs one") as caught:
        Block(pool(text))
    assert "mode=routed" in caught.value.hint


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("10.0.0.0", Invalid, "is its network address"),
        ("10.0.0.1", Invalid, "is its gateway"),
        ("10.0.0.255", Invalid, "is its broadcast address"),
        ("10.0.1.2", Invalid, "is outside pool 10.0.0.0/24 of network demo"),
        ("fd00::2", Invalid, "is outside pool"),
        ("10.0.0.9", Conflict, "10.0.0.9 is in use by web"),
    ],
)
def test_an_exact_address_that_cannot_be_had_is_refused_with_its_reason(
    address: str, error: type[Exception], words: str
) -> None:
    """Nothing changes by a refused request."""
    block = Block(pool("10.0.0.0/24"), network="demo")
    block.take(one("10.0.0.9"), "web")
    with pytest.raises(error, match=words):
        block.take(one(address), "other")
    assert dict(block.held) == {one("10.0.0.9").packed: "web"}


def test_the_anycast_address_of_an_ipv6_pool_is_refused() -> None:
    """RFC 4291 2.6.1: the all-zero host part belongs to the subnet's routers."""
    with pytest.raises(Invalid, match="subnet-router anycast"):
        Block(pool("fd00::/64")).take(one("fd00::"), "web")


def test_a_full_pool_says_how_many_are_held_and_by_whom_most() -> None:
    """The error names pool, network, number, and the name with most addresses."""
    block = Block(pool("10.0.0.0/29"), network="demo")
    for holder in ("web", "db", "web", "web", "db"):
        block.allocate(0.0, holder)
    with pytest.raises(Exhausted) as caught:
        block.allocate(0.0, "late")
    assert (
        caught.value.message == "pool 10.0.0.0/29 of network demo: all 5 addresses are in use, most by web (3)"
    )


def test_an_address_is_not_given_again_while_others_are_unused() -> None:
    """Next-fit: the released one comes after the last that was never used, marked as reused."""
    block = Block(pool("10.0.0.0/29"))
    first = block.allocate(0.0, "a").address
    block.release(first, 1.0)
    later = [block.allocate(2.0, "b") for _ in range(4)]
    assert first not in [a.address for a in later]
    assert not any(a.reused for a in later)
    last = block.allocate(3.0, "c")
    assert (last.address, last.reused) == (first, True)


def test_released_addresses_come_back_oldest_first() -> None:
    """The one that cooled longest is given, even inside its cool-down, when nothing else is left."""
    block = Block(pool("10.0.0.0/29"), cooldown=60.0)
    given = [block.allocate(0.0, "a").address for _ in range(5)]
    for when, index in enumerate((3, 0, 4)):
        block.release(given[index], float(when))
    assert [block.allocate(3.0, "b").address for _ in range(3)] == [given[3], given[0], given[4]]


def test_a_large_pool_does_not_remember_every_address_it_ever_gave() -> None:
    """With many released and cooled, the oldest is given before a fresh one."""
    block = Block(pool("fd00::/64"), cooldown=60.0)
    given = [block.allocate(0.0, "a").address for _ in range(REMEMBERED + 1)]
    for address in given:
        block.release(address, 0.0)
    assert not block.allocate(59.0, "b").reused
    assert block.allocate(60.0, "b").address == given[0]


def test_reserved_addresses_are_given_only_exactly() -> None:
    """Allocation steps over them; asking by address works; after unreserve they are ordinary."""
    block = Block(pool("10.0.0.0/28"), reserved=[prefix("10.0.0.4/30")])
    assert block.take(one("10.0.0.5"), "exact").address.address == "10.0.0.5"
    given = drained(block)
    assert not any(prefix("10.0.0.4/30").holds(one(a)) for a in given)
    block.unreserve(prefix("10.0.0.4/30"))
    assert drained(block) == ["10.0.0.4", "10.0.0.6", "10.0.0.7"]


def test_a_reserved_address_that_was_released_comes_back_when_the_reservation_goes() -> None:
    """It waits aside meanwhile, is not given, and is not forgotten."""
    block = Block(pool("10.0.0.0/30"))
    address = block.allocate(0.0, "a").address
    block.reserve(address)
    block.release(address, 1.0)
    with pytest.raises(Exhausted, match="no address to give; 1 more are reserved"):
        block.allocate(100.0, "b")
    block.unreserve(address)
    again = block.allocate(200.0, "c")
    assert (again.address, again.reused) == (address, True)


def test_restored_addresses_are_held_and_cooling_ones_come_last() -> None:
    """An address that the journal restores at the start is not given to another endpoint."""
    block = Block(pool("10.0.0.0/29"))
    block.restore(one("10.0.0.2"), "a")
    block.cool(one("10.0.0.3"), 0.0)
    assert block.holder(one("10.0.0.2")) == "a"
    with pytest.raises(Conflict, match="in use by a"):
        block.restore(one("10.0.0.2"), "b")
    with pytest.raises(NotFound, match=r"10\.0\.0\.3"):
        block.holder(one("10.0.0.3"))
    assert drained(block) == ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.3"]


@pytest.mark.parametrize("text", ["10.0.0.0/16", "fd00::/64"])
def test_the_last_of_65533_addresses_costs_as_little_as_the_first(text: str) -> None:
    """One allocation takes no longer, by order of magnitude, however many are held."""
    block = Block(pool(text))

    def thousand() -> float:
        started = time.perf_counter()
        for _ in range(1000):
            block.allocate(0.0, "a")
        return time.perf_counter() - started

    costs = [thousand() for _ in range(65)]
    assert min(costs[-10:]) < 10 * min(costs[:10])
    address = block.allocate(0.0, "a").address
    block.release(address, 1.0)
    assert address.packed not in block.held


POOLS = ["10.0.0.0/28", "10.0.0.8/29", "10.0.0.4/30", "10.0.0.2/31", "fd00::/124", "fd00::4/127"]


class BlockMachine(RuleBasedStateMachine):
    """Any interleaving of requests over a small pool, against plain sets."""

    @initialize(text=st.sampled_from(POOLS), routed=st.booleans())
    def begin(self, text: str, routed: bool) -> None:
        """Open a block."""
        self.pool, self.routed, self.now = pool(text), routed, 0.0
        self.block = Block(self.pool, cooldown=5.0, routed=routed)
        low, high = usable(self.pool, routed)
        width = len(self.pool.packed)
        self.usable = [Prefix(v.to_bytes(width, "big"), width * 8) for v in range(low, high + 1)]
        self.held: dict[Prefix, str] = {}
        self.released: dict[Prefix, float] = {}
        self.reserved: list[Prefix] = []

    def open_to_all(self, address: Prefix) -> bool:
        """Return whether no reservation covers it."""
        return not any(r.holds(address) for r in self.reserved)

    @rule(holder=st.sampled_from("abc"))
    def allocate(self, holder: str) -> None:
        """Give one that is free, not reserved, and has cooled unless nothing better is left."""
        could = [a for a in self.usable if a not in self.held and self.open_to_all(a)]
        if not could:
            with pytest.raises(Exhausted):
                self.block.allocate(self.now, holder)
            return
        given = self.block.allocate(self.now, holder)
        assert given.address in could
        assert given.reused == (given.address in self.released)
        if given.reused:
            since = self.released.pop(given.address)
            assert since + 5.0 <= self.now or all(
                self.released.get(a, -1.0) >= since for a in could if a != given.address
            )
        self.held[given.address] = holder

    @rule(data=st.data(), holder=st.sampled_from("abc"))
    def take(self, data: st.DataObject, holder: str) -> None:
        """Give an exact address if and only if it is usable and not held."""
        address = self.pool.at(data.draw(st.integers(0, self.pool.size - 1))).single()
        if address in self.held:
            with pytest.raises(Conflict, match=f"in use by {self.held[address]}"):
                self.block.take(address, holder)
        elif address not in self.usable:
            with pytest.raises(Invalid):
                self.block.take(address, holder)
        else:
            assert self.block.take(address, holder).reused == (address in self.released)
            self.released.pop(address, None)
            self.held[address] = holder

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Take an address back; a second release changes nothing."""
        address = data.draw(st.sampled_from(sorted(self.held)))
        for _ in range(2):
            self.block.release(address, self.now)
        del self.held[address]
        self.released[address] = self.now

    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        """Set a part of the pool aside."""
        length = data.draw(st.integers(self.pool.length + 1, len(self.pool.packed) * 8))
        offset = data.draw(st.integers(0, self.pool.size - 1))
        part = Prefix(self.pool.at(offset).packed, length).network()
        self.block.reserve(part)
        self.reserved.append(part)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def unreserve(self, data: st.DataObject) -> None:
        """Take a reservation away."""
        part = data.draw(st.sampled_from(self.reserved))
        self.block.unreserve(part)
        self.reserved = [r for r in self.reserved if r != part]

    @rule(seconds=st.floats(0.0, 10.0))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @invariant()
    def agrees(self) -> None:
        """Held is what the model holds, and free is what could be given."""
        if not hasattr(self, "block"):
            return
        assert dict(self.block.held) == {a.packed: h for a, h in self.held.items()}
        could = [a for a in self.usable if a not in self.held and self.open_to_all(a)]
        assert self.block.free(self.now) == len(could)


TestAnyInterleaving = BlockMachine.TestCase
