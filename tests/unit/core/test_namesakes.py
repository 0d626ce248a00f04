"""Hosts with one name: a command takes none of them by chance, and the id tells them apart."""

from __future__ import annotations

import pytest

from linkspan.core import namesakes
from linkspan.core.errors import Conflict, NotFound
from linkspan.lab.record import Host, Lab

NAMES = {"h1": "h1", "h2": "h2", "f00d": "node", "cafe": "node", "beef": "web"}


@pytest.mark.parametrize(
    ("word", "id_"), [("h1", "h1"), ("web", "beef"), ("f00d", "f00d"), ("cafe", "cafe"), ("db", "")]
)
def test_an_id_is_always_taken_and_a_name_where_it_is_one_host_s(word: str, id_: str) -> None:
    """A word that is neither selects no host."""
    assert namesakes.meant(NAMES, word) == id_


def test_a_name_of_several_hosts_is_refused_with_their_ids() -> None:
    """In order, so that two commands say the same."""
    with pytest.raises(Conflict, match="2 hosts have the name node: ids cafe, f00d"):
        namesakes.meant(NAMES, "node")


def test_an_id_that_is_another_host_s_name_too_is_the_id() -> None:
    """One host has it by --host-id, another by its name: the id has priority, and the output shows the id."""
    names = NAMES | {"abba": "h2"}
    assert namesakes.meant(names, "h2") == "h2"
    assert [namesakes.called(names, id_) for id_ in ("h2", "abba", "h1")] == ["h2 (id h2)", "h2 (id abba)", "h1"]
    assert namesakes.shared(names) == {"h2": ["abba", "h2"], "node": ["cafe", "f00d"]}


def test_hosts_that_were_removed_have_no_name_to_share() -> None:
    """Hosts that were removed share no name, and are called by their ids."""
    names = {"f00d": "", "cafe": ""}
    assert namesakes.shared(names) == {}
    assert namesakes.called(names, "cafe") == "cafe"


@pytest.mark.parametrize(
    ("word", "hint"),
    [("nodes", "did you mean node?"), ("bef", "did you mean beef?"), ("elsewhere", "`linkspan host list` shows them")],
)
def test_a_host_that_does_not_exist_is_named_with_the_one_probably_meant(word: str, hint: str) -> None:
    """The error offers the similar name or id, because a command takes both."""
    error = namesakes.missing(NAMES, word)
    assert f"host {word!r} does not exist (there are: h1, h2, node (id cafe)" in error.message
    assert error.hint == hint


def test_a_lab_says_which_of_its_hosts_was_probably_meant() -> None:
    """As the agent says it of the cluster's hosts."""
    hosts = [Host(name=f"node-{n}", namespace="", segment=0, addresses=[]) for n in (1, 2)]
    with pytest.raises(NotFound) as missing:
        Lab(name="lab", backend="vxlan", hosts=hosts).host("nod-1")
    assert missing.value.hint == "did you mean node-1?"
    with pytest.raises(NotFound) as missing:
        Lab(name="lab", backend="vxlan", hosts=hosts).host("web")
    assert missing.value.hint == "it has node-1, node-2"
