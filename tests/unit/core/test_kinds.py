"""Declarations of kinds: complete, free of clashes, and all that reconciler, healer and plan know of a state."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from linkspan.core.driver_contract import Support
from linkspan.core.errors import Conflict, LinkspanError
from linkspan.core.kinds import Event, Kind, Kinds, Link
from linkspan.core.program import Program
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import HOST, Key, State
from linkspan.kernel.kinds import kinds

ROOT = Path(__file__).parents[3]
NAMELESS = (
    "core/reconcile.py", "core/fights.py", "core/judgement.py", "core/desired.py", "agent/healer.py",
    "kernel/events.py", "kernel/machine.py", "kernel/io/batch.py", "diagnose/plan/plan.py",
)  # fmt: skip


def _classes() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "src/linkspan/core/states").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and any(getattr(b, "id", "") in {"State", *found} for b in node.bases):
                found.add(node.name)
    return found


def test_each_class_of_state_is_declared_once() -> None:
    """A kind without a declaration could not be put; one with a purpose and commands can be planned."""
    assert sorted(kind.name for kind in kinds()) == sorted(_classes())
    assert [kind.name for kind in kinds() if not (kind.purpose and kind.known_by)] == []


@pytest.mark.parametrize("name", NAMELESS)
def test_what_serves_all_kinds_names_none(name: str) -> None:
    """A new kind changes none of these files."""
    tree = ast.parse((ROOT / "src/linkspan" / name).read_text())
    words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    words |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert words & _classes() == set()


def test_each_link_has_a_form_of_a_name_that_its_kind_reserves() -> None:
    """Uninstall knows by it a link that lost its mark; a form of another kind's name would be taken for that one."""
    for kind in kinds():
        assert bool(kind.forms) == bool(kind.names), kind.name
        prefixes = tuple(name.rstrip("*") for name in kind.names)
        assert all(form.startswith(prefixes) for form in kind.forms), kind.name


def test_each_program_is_looked_for_by_one_kind() -> None:
    """A backend is given what that kind found; with two of them it would be whichever looked last."""
    assert sorted(program.__name__ for kind in kinds() for program in kind.finds) == sorted(
        program.__name__ for program in Program.__subclasses__()
    )


def test_the_table_of_what_objects_are_known_by_is_that_of_the_declarations() -> None:
    """ARCHITECTURE.md has one row for all kinds that are known by the same mark."""
    page = (ROOT / "ARCHITECTURE.md").read_text().partition("| kinds | known by |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [re.fullmatch(r"\| (.+) \| (.+) \|", line) for line in page.splitlines()]
    told = {name: row[2] for row in rows if row for name in re.findall(r"`(\w+)`", row[1])}
    assert told == {kind.name: kind.known_by for kind in kinds()}


class Cable(State, frozen=True, gc=False):
    """A link of a kind that linkspan does not have."""

    name: str
    length: int = 1

    @property
    def key(self) -> Key:
        """Its class and name."""
        return ("Cable", self.name)


class Plug(State, frozen=True, gc=False):
    """Something on it."""

    device: str

    @property
    def key(self) -> Key:
        """Its class and the link."""
        return ("Plug", self.device)


def _made(state: Cable) -> tuple[Link, ...]:
    return ((HOST, state.name),)


def _link(state: Plug) -> tuple[Link, ...]:
    return ((HOST, state.device),)


CABLE = Kind(state=Cable, rank=1, known_by="its name", purpose="a cable", makes=_made, names=("cab*",))
PLUG = Kind(state=Plug, rank=2, known_by="its cable", purpose="a plug", on=_link, falls=True)


class Shelf:
    """A driver of both, whose machine is a dictionary."""

    def __init__(self, refused: Iterable[str] = ()) -> None:
        self.there: dict[Key, State] = {}
        self.refused = set(refused)
        self.asked: list[tuple[str, Key]] = []

    def probe(self) -> Support:
        """Return support."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return what is there."""
        return list(self.there.values()) if netns == HOST else []

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Put and delete; a cable takes its plug along, also where it is replaced."""
        failed: dict[Key, LinkspanError] = {}
        for state in put:
            self.asked.append(("put", state.key))
            if state.key[0] in self.refused:
                failed[state.key] = LinkspanError(f"no {state.key[0]}")
                continue
            self.there[state.key] = state
            if isinstance(state, Cable):
                self.there.pop(Plug(state.name).key, None)
        for state in delete:
            self.asked.append(("delete", state.key))
            self.there.pop(state.key, None)
            if isinstance(state, Cable):
                self.there.pop(Plug(state.name).key, None)
        return failed


def _reconciler(shelf: Shelf) -> Reconciler:
    return Reconciler([(PLUG, shelf), (CABLE, shelf)])


def test_a_declared_link_comes_first_and_takes_what_is_on_it_along() -> None:
    """Nothing is deleted that falls with its link."""
    shelf = Shelf()
    reconciler = _reconciler(shelf)
    assert reconciler.change(("a",), [Plug("cab1"), Cable("cab1")]) == {}
    assert shelf.asked == [("put", Cable("cab1").key), ("put", Plug("cab1").key)]
    shelf.asked.clear()
    reconciler.change(("a",), [])
    assert shelf.asked == [("delete", Cable("cab1").key)]


def test_what_is_on_a_link_that_cannot_be_made_waits_for_it() -> None:
    """It might get onto a foreign link of that name; when the link can be made, both are put."""
    shelf = Shelf(refused=["Cable"])
    reconciler = _reconciler(shelf)
    failed = reconciler.change(("a",), [Cable("cab1"), Plug("cab1")])
    assert {key: error.message for key, error in failed.items()} == {
        Cable("cab1").key: "no Cable",
        Plug("cab1").key: "no Cable",
    }
    assert shelf.asked == [("put", Cable("cab1").key)]
    shelf.refused.clear()
    assert reconciler.resync().failed == {}
    assert set(shelf.there) == {Cable("cab1").key, Plug("cab1").key}


def test_a_link_that_was_replaced_has_what_is_on_it_put_again() -> None:
    """One resync does both, and only the link counts as changed by another program."""
    shelf = Shelf()
    reconciler = _reconciler(shelf)
    reconciler.change(("a",), [Cable("cab1"), Plug("cab1")])
    shelf.there[Cable("cab1").key] = Cable("cab1", length=9)
    report = reconciler.resync()
    assert [(heal.kind, heal.what) for heal in report.heals] == [("Cable", "changed"), ("Plug", "added")]
    assert set(shelf.there.values()) == {Cable("cab1"), Plug("cab1")}


def test_two_kinds_cannot_reserve_one_name() -> None:
    """The owner of a link would be ambiguous."""
    with pytest.raises(Conflict, match=r"kind Plug calls its links cable\*, and kind Cable calls its links cab\*"):
        Kinds([CABLE, Kind(state=Plug, rank=2, known_by="", purpose="", names=("cable*",))])
    with pytest.raises(Conflict, match="two kinds of state are called Cable"):
        Kinds([CABLE, CABLE])


def test_an_event_leads_to_the_kinds_that_declare_it() -> None:
    """One that changes without an event is checked every second."""
    heard = Kind(state=Cable, rank=1, known_by="", purpose="", events=frozenset({Event.LINK}))
    known = Kinds([heard, Kind(state=Plug, rank=2, known_by="", purpose="", poll=True)])
    assert known.after(Event.LINK, Event.NFT) == {Cable}
    assert known.after(Event.NFT) == frozenset()
    assert known.polled == {Plug}
