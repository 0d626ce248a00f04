"""Voting: who becomes a voter next, as a function of members, health, hosts and wishes."""

from __future__ import annotations

import pytest

from linkspan.cluster.founding.voting import (
    Add,
    Candidate,
    Clocks,
    Promote,
    Remove,
    Seen,
    Situation,
    VotingSettings,
    Wait,
    next_step,
    refusal,
    spare,
    voters_for,
)

LONG = 1000.0


def voter(host: str, *, failing: float = 0.0, healthy: float = LONG, leader: bool = False) -> Seen:
    """Return a voter."""
    return Seen(id=f"id-{host}", host=host, leader=leader, failing=failing, healthy=0.0 if failing else healthy)


def learner(host: str = "n", *, still: float = 0.0) -> Seen:
    """Return a learner."""
    return Seen(id="id-n", host=host, learner=True, healthy=1.0, still=still)


def candidates(*hosts: str) -> tuple[Candidate, ...]:
    """Return hosts that may become voters."""
    return tuple(Candidate(host, f"192.0.2.{number}") for number, host in enumerate(hosts, 1))


@pytest.mark.parametrize(("hosts", "voters"), [(1, 1), (2, 1), (3, 3), (6, 3), (7, 5), (1000, 5)])
def test_the_number_of_voters_follows_the_number_of_hosts(hosts: int, voters: int) -> None:
    """One with one or two hosts, three from three on, five from seven on."""
    assert voters_for(hosts) == voters


def test_three_hosts_get_three_voters_one_after_the_other() -> None:
    """A learner, its promotion, then the next one; then there is nothing to do."""
    one = Situation(members=(voter("a"),), candidates=candidates("b", "c"), hosts=3)
    assert next_step(one) == Add(candidates("b", "c")[0])
    started = Situation(members=(voter("a"), learner()), candidates=candidates("c"), hosts=3)
    assert next_step(started) == Promote(learner())
    two = Situation(members=(voter("a"), voter("b")), candidates=candidates("c"), hosts=3)
    assert isinstance(next_step(two), Add)
    assert next_step(Situation(members=(voter("a"), voter("b"), voter("c")), hosts=3)) == Wait()


def test_one_more_host_is_no_reason_for_two_voters() -> None:
    """Two bear the loss of none, as one does: so the first step waits until the second one is possible, too."""
    alone = Situation(members=(voter("a"),), candidates=candidates("b"), hosts=3)
    assert isinstance(next_step(alone), Wait)
    assert next_step(Situation(members=(voter("a"),), candidates=candidates("b"), hosts=2)) == Wait()
    wanted = VotingSettings(voters=2)
    assert isinstance(next_step(Situation(members=(voter("a"),), candidates=candidates("b"), settings=wanted)), Add)


def test_nobody_is_added_before_all_voters_were_healthy_for_long_enough() -> None:
    """Sixty seconds, and the time can be set."""
    young = (voter("a", healthy=59.0),)
    assert isinstance(next_step(Situation(members=young, candidates=candidates("b", "c"), hosts=3)), Wait)
    quick = VotingSettings(steady=5.0)
    found = next_step(Situation(members=young, candidates=candidates("b", "c"), hosts=3, settings=quick))
    assert isinstance(found, Add)
    ill = (voter("a"), voter("b", failing=2.0), voter("c"), voter("d"))
    assert isinstance(next_step(Situation(members=ill, candidates=candidates("e"), hosts=7)), Wait)


def test_a_learner_that_makes_no_progress_is_taken_out() -> None:
    """After five minutes, and at once if its host says that it cannot; meanwhile it is not promoted unstarted."""
    slow = Situation(members=(voter("a"), learner(still=301.0)), hosts=3)
    assert isinstance(next_step(slow), Remove)
    assert isinstance(next_step(Situation(members=(voter("a"), learner("", still=10.0)), hosts=3)), Wait)
    assert isinstance(next_step(Situation(members=(voter("a"), learner("")), hosts=3, refused=True)), Remove)
    ill = (voter("a"), voter("b"), voter("c", failing=1.0), learner())
    assert isinstance(next_step(Situation(members=ill, hosts=4)), Wait)


def test_a_dead_voter_is_replaced_by_a_living_host_and_by_nobody_else() -> None:
    """After ten minutes; without a host that can take its place it may come back with its data."""
    members = (voter("a", failing=601.0), voter("b", leader=True), voter("c"))
    found = next_step(Situation(members=members, candidates=candidates("d"), hosts=4))
    assert isinstance(found, Remove)
    assert found.member.host == "a"
    assert isinstance(next_step(Situation(members=members, hosts=3)), Wait)
    early = (voter("a", failing=599.0), voter("b"), voter("c"))
    assert isinstance(next_step(Situation(members=early, candidates=candidates("d"), hosts=4)), Wait)


def test_nothing_is_changed_without_a_quorum() -> None:
    """Two of three are dead for hours."""
    members = (voter("a", failing=9999.0), voter("b", failing=9999.0), voter("c"))
    assert spare(members) == -1
    assert isinstance(next_step(Situation(members=members, candidates=candidates("d"), hosts=4)), Wait)


def test_too_many_voters_become_fewer_dead_ones_first_and_the_leader_last() -> None:
    """After hosts have left, or by the operator's wish; never the last one, and never below a quorum."""
    members = (voter("a", leader=True), voter("b"), voter("c", failing=5.0))
    assert next_step(Situation(members=members, hosts=2)) == Remove(members[2], "1 of 3 voters are enough")
    found = next_step(Situation(members=members[:2], hosts=2))
    assert isinstance(found, Remove)
    assert found.member.host == "b"
    unsteady = (voter("a", leader=True), voter("b", healthy=3.0))
    assert not isinstance(next_step(Situation(members=unsteady, hosts=2)), Remove)


def test_a_voter_may_leave_only_if_the_others_keep_a_quorum() -> None:
    """The last one never, and not one of two whose other one is dead."""
    assert "last voter" in refusal((voter("a"),), "id-a")
    assert refusal((voter("a"), voter("b")), "id-a") == ""
    assert "only 0 of the other 1" in refusal((voter("a"), voter("b", failing=1.0)), "id-a")
    three = (voter("a"), voter("b", failing=1.0), voter("c"))
    assert "only 1 of the other 2" in refusal(three, "id-a")
    assert refusal(three, "id-b") == ""
    assert "last voter" in refusal((voter("a"), learner()), "id-a")


def test_clocks_begin_again_with_each_change() -> None:
    """Healthy and failing times, and progress, which is any change of what a member says."""
    clocks = Clocks()
    clocks.note("a", answers=True, progress=1, now=10.0)
    assert clocks.times("a", 15.0) == (5.0, 0.0, 5.0)
    clocks.note("a", answers=True, progress=2, now=16.0)
    assert clocks.times("a", 20.0) == (10.0, 0.0, 4.0)
    clocks.note("a", answers=False, progress=2, now=21.0)
    healthy, failing, still = clocks.times("a", 21.0)
    assert (healthy, still) == (0.0, 5.0)
    assert failing > 0
    clocks.keep(())
    clocks.note("a", answers=True, progress=None, now=30.0)
    assert clocks.times("a", 31.0) == (1.0, 0.0, 1.0)
