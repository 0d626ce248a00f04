"""Messages of netlink and commands of libnftables that go to the kernel for elements, sets and chains."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from linkspan.core.ruleset import element
from linkspan.core.states.host import NftChain, NftSet
from linkspan.kernel.drivers import nftables_objects
from linkspan.kernel.drivers.nftables_objects import FirewallDriver
from linkspan.kernel.io.netlink import Message

PEERS = NftSet("inet", "linkspan", "chosen4_00", "ipv4_addr")
WAYS = NftSet("inet", "linkspan", "policed_by_in4", "ipv4_addr", "verdict")
ONE, TWO = (NftChain("inet", "linkspan", f"policy_in4_by_{name}", "", ("accept",)) for name in ("one", "two"))
MANY = [element(PEERS.name, f"10.{n >> 8}.{n & 255}.1") for n in range(10_000)]


class Kernel:
    """Both ways into the kernel, which count what goes through them; whatever is put is there."""

    def __init__(self) -> None:
        self.transactions: list[int] = []
        """The messages of each transaction of netlink."""
        self.commands: list[list[str]] = []
        """Those of libnftables."""
        self.listed: list[str] = []

    def transaction(self, _begin: Message, messages: Sequence[Message], _end: Message) -> None:
        """Accept a batch."""
        self.transactions.append(len(messages))

    def run(self, commands: str) -> str:
        """Accept commands."""
        if not commands.startswith("describe"):  # it asks which expressions this version knows
            self.commands.append(commands.splitlines())
        return ""

    def text(self, command: str) -> str:
        """List a chain."""
        self.listed.append(command)
        name = command.split()[-1]
        return f"table inet linkspan {{\n\tchain {name} {{\n\t\taccept\n\t}}\n}}\n"


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Let the driver have this kernel."""
    kernel = Kernel()
    monkeypatch.setattr(nftables_objects, "Nft", lambda: kernel)
    monkeypatch.setattr(nftables_objects, "netfilter_socket", lambda: kernel)
    monkeypatch.setattr(nftables_objects, "generation", lambda _: 1 + len(kernel.commands) + len(kernel.transactions))
    return kernel


def test_ten_thousand_elements_are_a_few_messages(kernel: Kernel) -> None:
    """They come before the rule that uses their set, and with the set they go."""
    driver = FirewallDriver()
    using = NftChain("inet", "linkspan", "policy_in4_00", "", (f"ip saddr @{PEERS.name} accept",))
    assert driver.apply([PEERS, using, *MANY], ()) == {}
    assert kernel.transactions == [3], "16 bytes for each, 60,000 in a message"
    assert [len(commands) for commands in kernel.commands] == [1, 4], "the set; then the rule, and the set again"
    assert kernel.listed == ["list chain inet linkspan policy_in4_00"], "not the whole table"
    kernel.commands.clear()
    assert driver.apply((), [*MANY, using, PEERS]) == {}
    assert kernel.commands == [
        [
            "flush chain inet linkspan policy_in4_00",
            "delete chain inet linkspan policy_in4_00",
            "delete set inet linkspan chosen4_00",
        ]
    ]
    assert kernel.transactions == [3]


def test_another_label_is_two_messages(kernel: Kernel) -> None:
    """Of one here: from where it leads until now, and to where it leads. Of a peer elsewhere: one."""
    driver = FirewallDriver()
    before, after = (element(WAYS.name, "10.0.0.1", data=(f"goto {one.name}",)) for one in (ONE, TWO))
    assert driver.apply([PEERS, WAYS, ONE, TWO, before], ()) == {}
    kernel.commands.clear()
    assert driver.apply([after], ()) == {}
    assert driver.apply([after], ()) == {}
    assert driver.apply(MANY[:1], ()) == {}
    assert driver.apply((), MANY[:1]) == {}
    assert driver.apply((), [after]) == {}
    assert kernel.transactions == [2, 1, 1, 1, 1]
    assert kernel.commands == []


def test_a_combination_of_policies_comes_and_goes_without_libnftables(kernel: Kernel) -> None:
    """Its chain has verdicts alone: a message for it, and one for each rule."""
    driver = FirewallDriver()
    assert driver.apply([PEERS, WAYS, ONE], ()) == {}
    kernel.commands.clear()
    rules = (f'jump {ONE.name} comment "policy web"', "goto policy_in4_00_no")
    new = NftChain("inet", "linkspan", "policy_in4_by_new", "", rules)
    way = element(WAYS.name, "10.0.0.1", data=(f"goto {new.name}",))
    assert driver.apply([new, MANY[0], way], ()) == {}
    assert driver.apply((), [way, MANY[0], new]) == {}
    assert kernel.transactions == [5, 3]
    assert kernel.commands == []


def test_elements_that_stay_behind_go_without_libnftables(kernel: Kernel) -> None:
    """A deleted chain with other rules is its business; the elements of sets that stay are none of it."""
    driver = FirewallDriver()
    other = NftChain("inet", "linkspan", "policy_in4_00", "", ("ip saddr 10.0.0.1 accept",))
    assert driver.apply([PEERS, other, *MANY[:10]], ()) == {}
    kernel.commands.clear()
    assert driver.apply((), [*MANY[:10], other]) == {}
    assert kernel.transactions == [1]
    assert [command.split()[0] for command in kernel.commands[0]] == ["flush", "delete"]


def test_a_map_loses_its_elements_only_with_the_rule_that_uses_it(kernel: Kernel) -> None:
    """In between, that rule would find no way for a container's packets, and drop them."""
    driver = FirewallDriver()
    using = NftChain("inet", "linkspan", "policy_in4", "", (f"ip daddr vmap @{WAYS.name}", "drop"))
    way = element(WAYS.name, "10.0.0.1", data=(f"goto {ONE.name}",))
    assert driver.apply([PEERS, WAYS, ONE, using, way, MANY[0]], ()) == {}
    kernel.commands.clear()
    kernel.transactions.clear()
    assert driver.apply((), [way, MANY[0], using, ONE, WAYS]) == {}
    assert kernel.transactions == [1], "the element of the set that stays"
    (commands,) = kernel.commands
    assert [command.split()[:2] for command in commands] == [
        ["delete", "element"], ["flush", "chain"], ["flush", "chain"], ["delete", "chain"], ["delete", "chain"],
        ["delete", "map"],
    ]  # fmt: skip
