"""Names of namespaces in a lesson: what counts as another namespace."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from linkspan.learn import named_namespaces
from linkspan.learn.lesson import numbered
from linkspan.learn.sandbox import Sandbox
from linkspan.learn.watcher import judge

HOST = "/proc/self/ns/net 4:100 2026-12-02 11:00:00.1 +0000"
A = "/run/netns/netns_A 4:101 2026-12-02 11:00:00.2 +0000"
B = "/run/netns/netns_B 4:102 2026-12-02 11:00:00.3 +0000"
C = "/run/netns/netns_C 4:103 2026-12-02 11:00:00.4 +0000"
BEGINNING = f"{HOST}\n{A}\n{B}\n{C}"


def replaced(name: str, *lines: str) -> tuple[str, ...]:
    """Return what is said of a lesson if these are there now."""
    return named_namespaces.replaced(numbered(name), BEGINNING, "\n".join(lines))


def test_the_namespaces_of_the_beginning_are_the_lesson_s() -> None:
    """Also if the reader has more, and if the host's inode was read again."""
    more = "/run/netns/own 4:104 2026-12-02 11:00:00.5 +0000"
    assert replaced("case-5", HOST.replace("00.1", "59.1"), A, B, C, more) == ()


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ((HOST, A, B.replace("4:102", "4:101").replace("00.3", "00.2"), C), ("netns_A", "netns_B")),
        ((HOST, A.replace("4:101", "4:100"), B, C), ("host", "netns_A")),
        ((HOST, A, B, C.replace("4:103", "4:105")), ("netns_C",)),
        ((HOST, A, B, C.replace("00.4", "30.4")), ("netns_C",)),
        ((HOST, A, B), ("netns_C",)),
        ((HOST.replace("4:100", "4:106"), A, B, C), ("host",)),
    ],
    ids=("two names", "the host", "another one", "the same number again", "none", "another host"),
)
def test_another_namespace_under_a_name_is_named(lines: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Whichever it is: a ping from a container to itself solves no lesson."""
    assert replaced("case-5", *lines) == names


def test_names_that_the_reader_makes_are_namespaces_of_their_own() -> None:
    """The first lesson begins with none; a name that is not there yet is no mistake."""
    one = numbered("namespaces")
    assert named_namespaces.replaced(one, HOST, f"{HOST}\n{A}") == ()
    both = f"{A}\n{B}".replace("4:101", "4:100").replace("4:102", "4:100")
    assert named_namespaces.replaced(one, HOST, f"{HOST}\n{both}") == ("host", "netns_A", "netns_B")


class Faked(Sandbox):
    """A sandbox in which all commands succeed, netns_B is netns_A, and the remembered file says that it always was."""

    def results(self, commands: Sequence[str]) -> list[tuple[int, str]]:
        """Print the namespaces for each command that asks for them."""
        other = B.replace("4:102", "4:105")
        now = f"{HOST}\n{A}\n{other}"
        counters = "Icmp: InEchos\nIcmp: 0"
        return [(0, now if "stat -L" in one or "namespaces" in one else counters) for one in commands]


def test_a_lesson_in_another_namespace_is_not_passed() -> None:
    """If the caller remembers the beginning, the sandbox's own file is not believed."""
    one = numbered("case-1")
    given = {"host": "4:100", "netns_A": A.partition(" ")[2], "netns_B": B.partition(" ")[2]}
    assert judge(Faked(0), one).replaced == ()
    judged = judge(Faked(0), one, given)
    assert (judged.replaced, judged.passed) == (("netns_B",), False)


def test_what_names_a_lesson_asks_for_is_read_from_its_commands() -> None:
    """And not from the sandbox, in which names may have line breaks."""
    _, now = named_namespaces.looks(numbered("namespaces"), {"host": "4:100"})
    assert now.split()[-2:] == ["/run/netns/netns_A", "/run/netns/netns_B"]
    assert "*" not in now
