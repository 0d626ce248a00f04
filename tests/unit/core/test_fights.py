"""Objects that another program changes again and again: three repairs at once, then pauses; guards never wait."""

from __future__ import annotations

from linkspan.core.fights import FIRST, LONGEST, MOST, WINDOW, Fights
from linkspan.core.kinds import ALL, BRIDGED
from linkspan.core.states.host import Bridge, NftChain, NftElement, NftTable, State
from linkspan.kernel.kinds import kinds
from support.clocks import Clock

ROUTED = Bridge("ls-demo", b"\2\0\0\0\0\1", 1500)
WRONG = Bridge("ls-demo", b"\2\0\0\0\0\1", 1400)
CHAIN = NftChain("inet", "linkspan", "guard", "", ())
SENDER = NftElement("bridge", "linkspan", "senders4", ("lsp1", "02:00:00:00:00:01", "10.0.0.2"))


def made() -> tuple[Fights, Clock]:
    """Return fights with a clock."""
    clock = Clock()
    return Fights(kinds(), clock), clock


def undone(fights: Fights, state: State, seen: State | None = None) -> bool:
    """Find the object wrong, and put it back if that may be; return whether it was."""
    if fights.wrong(state, seen) is not None:
        return False
    fights.repaired(state, seen)
    return True


def test_three_repairs_need_no_pause_and_the_fourth_waits() -> None:
    """The pauses begin at 4 s, double, and end at 60 s."""
    fights, clock = made()
    assert [undone(fights, ROUTED) for _ in range(4)] == [True, True, True, False]
    pauses = []
    for _ in range(7):
        begun = clock.now
        while not undone(fights, ROUTED):
            soon = fights.soon()
            assert soon is not None
            clock.now += soon
        pauses.append(clock.now - begun)
    assert pauses == [FIRST, 8, 16, 32, LONGEST, LONGEST, LONGEST]


def test_different_faults_of_one_object_are_no_fight() -> None:
    """Somebody who tries one thing after another is not another program that insists."""
    fights, _ = made()
    faults = [Bridge("ls-demo", b"\2\0\0\0\0\1", 1400 + n) for n in range(MOST)]
    assert all(undone(fights, ROUTED, fault) for fault in faults)
    assert fights.open() == []
    assert not undone(fights, ROUTED, faults[0])


def test_repairs_that_lie_far_apart_are_no_fight() -> None:
    """Once a minute an administrator may undo the same thing."""
    fights, clock = made()
    for _ in range(20):
        assert undone(fights, ROUTED, WRONG)
        clock.now += WINDOW / 2
    assert fights.open() == []


def test_a_fight_is_over_when_nobody_changed_the_object_for_a_minute() -> None:
    """It is reported once, and three repairs are free again."""
    fights, clock = made()
    while undone(fights, ROUTED):
        pass
    clock.now += FIRST
    assert undone(fights, ROUTED)
    clock.now += WINDOW - 1
    assert fights.settle() == ([], False)
    clock.now += 1
    ended, _ = fights.settle()
    assert [fight.what for fight in ended] == ["Bridge ls-demo"]
    assert fights.settle() == ([], False)
    assert undone(fights, ROUTED)


def test_a_chain_of_one_policy_that_is_refused_closes_no_port() -> None:
    """Its containers are closed without that. If another program changes it again and again, ports go down as ever."""
    fights, _ = made()
    digest = "0" * 32
    own = [
        *(NftChain("inet", "linkspan", f"policy_in4_{name}", "", ()) for name in (digest, f"by_{digest}")),
        NftElement("inet", "linkspan", "policed_by_in4", ("10.0.0.2",), ("goto x",)),
    ]
    shared = NftChain("inet", "linkspan", "policy_in4", "", ())
    for state in own:
        fights.wrong(state, None)
        fights.failed(state, "refused")
        assert fights.closed() == set()
    for state in (shared, own[0]):
        fights.wrong(state, None)
    for state in (own[0], shared):
        fights.failed(state, "refused")
    assert fights.closed() == {ALL}
    fights, _ = made()
    while not fights.closed():
        assert undone(fights, own[0])
    fights.failed(own[0], "refused")
    assert fights.closed() == {ALL}


def test_who_fights_is_named_also_where_the_kernel_refused_first() -> None:
    """A table that goes while it is put is refused before anybody knows of a fight; its deleter is reported later."""
    fights, _ = made()
    table = NftTable("inet", "linkspan")
    fights.wrong(table, None)
    fights.failed(table, "No such file or directory")
    assert [fight.by for fight in fights.open()] == [""]
    fights.changed_by([NftTable], "nft, process 7")
    fights.wrong(table, None)
    assert [fight.by for fight in fights.open()] == ["nft, process 7"]
    fights.changed_by([NftTable], "nft, process 8")
    fights.failed(table, "No such file or directory")
    assert [fight.by for fight in fights.open()] == ["nft, process 7"]


def test_what_comes_right_by_itself_is_waited_for_no_longer() -> None:
    """No retry is due if the other program has stopped, or if the object is no longer wanted."""
    fights, clock = made()
    while undone(fights, ROUTED):
        pass
    assert fights.soon() == FIRST
    assert fights.kinds() == {Bridge}
    fights.right([Bridge], set())
    assert fights.soon() is None
    clock.now += WINDOW
    assert len(fights.settle()[0]) == 1


def test_what_the_kernel_refuses_is_no_fight() -> None:
    """If a cable is unplugged, a route cannot be put; the next chance counts."""
    fights, _ = made()
    for _ in range(10):
        assert fights.wrong(ROUTED, None) is None
        fights.repaired(ROUTED, None)
        assert fights.wrong(ROUTED, None) is None
        fights.failed(ROUTED, "network is down")


def test_a_guard_that_cannot_be_put_closes_its_ports_at_once() -> None:
    """Nothing guards the containers then; the ports come up when it could be put, and held."""
    fights, clock = made()
    assert fights.wrong(CHAIN, None) is None
    fights.failed(CHAIN, "not permitted")
    assert fights.closed() == {ALL}
    (fight,) = fights.open()
    assert fight.message.startswith("linkspan cannot put back NftTable inet linkspan (not permitted), which")
    clock.now += 1
    assert undone(fights, CHAIN)
    clock.now += FIRST
    assert fights.settle() == ([], True)
    assert fights.closed() == set()


def test_guards_are_put_back_at_once_and_ports_are_closed() -> None:
    """The rules come back at every look; the ports that they guard are down until the rules held for the pause."""
    fights, clock = made()
    fights.changed_by([NftChain], "nft, process 7")
    for number in range(10):
        assert undone(fights, CHAIN)
        assert fights.closed() == ({ALL} if number >= 3 else set())
    fight = fights.closing("lsr1", bridged=False)
    assert fight is not None
    assert fight.message == (
        "another program (nft, process 7) keeps changing NftTable inet linkspan, which guards containers: "
        "their ports are down until it is in force"
    )
    clock.now += FIRST - 0.1
    assert fights.settle() == ([], False)
    clock.now += 0.1
    assert fights.settle() == ([], True)
    assert fights.closed() == set()
    undone(fights, CHAIN)  # soon after: the ports stay down for longer
    assert fights.closed() == {ALL}
    assert fights.soon() == 2 * FIRST


def test_only_the_ports_that_a_guard_is_for_are_closed() -> None:
    """One sender's element is for one port, the bridge table for all ports of bridges."""
    fights, _ = made()
    for _ in range(4):
        undone(fights, SENDER)
    assert fights.closed() == {"lsp1"}
    assert fights.closing("lsp2", bridged=True) is None
    for _ in range(4):
        undone(fights, NftTable("bridge", "linkspan"))
    assert fights.closed() == {"lsp1", BRIDGED}
    assert fights.closing("lsp2", bridged=True) is not None
    assert fights.closing("lsr2", bridged=False) is None


def test_published_ports_are_no_guard() -> None:
    """Their elements wait as other objects do."""
    fights, _ = made()
    port = NftElement("inet", "linkspan", "publish4", ("tcp", "80"), ("10.0.0.2", "80"))
    assert [undone(fights, port) for _ in range(4)] == [True, True, True, False]
    assert fights.closed() == set()
