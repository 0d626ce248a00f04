"""Hosts with one name: a command takes none of them by chance, and the id tells them apart."""

from __future__ import annotations

import pytest

from linkspan import namesakes
from linkspan.errors import Conflict

NAMES = {"h1": "h1", "h2": "h2", "f00d": "node", "cafe": "node", "beef": "web"}


@pytest.mark.parametrize(
    ("word", "id_"), [("h1", "h1"), ("web", "beef"), ("f00d", "f00d"), ("cafe", "cafe"), ("db", "")]
)
def test_an_id_is_always_taken_and_a_name_where_it_is_one_host_s(word: str, id_: str) -> None:
    """Nobody is meant by a word that is neither."""
    assert namesakes.meant(NAMES, word) == id_


def test_a_name_of_several_hosts_is_refused_with_their_ids() -> None:
    """In order, so that two commands say the same."""
    with pytest.raises(Conflict, match="2 hosts have the name node: ids cafe, f00d"):
        namesakes.meant(NAMES, "node")


def test_an_id_that_is_another_host_s_name_too_is_the_id() -> None:
    """Whoever has it by --host-id, and a machine that is called so: the first is meant, and is told apart."""
    names = NAMES | {"abba": "h2"}
    assert namesakes.meant(names, "h2") == "h2"
    assert [namesakes.called(names, id_) for id_ in ("h2", "abba", "h1")] == ["h2 (id h2)", "h2 (id abba)", "h1"]
    assert namesakes.shared(names) == {"h2": ["abba", "h2"], "node": ["cafe", "f00d"]}


def test_hosts_that_were_removed_have_no_name_to_share() -> None:
    """They are shown by their ids."""
    names = {"f00d": "", "cafe": ""}
    assert namesakes.shared(names) == {}
    assert namesakes.called(names, "cafe") == "cafe"
