"""Values that follow from records are computed again only after a change."""

from __future__ import annotations

import pytest

from linkspan.store.derived import Derived


class Inputs:
    """An input whose changes are counted, and how often something was computed from it."""

    def __init__(self) -> None:
        self.changes = 0
        self.computed = 0

    def compute(self) -> list[int]:
        """Return a new value."""
        self.computed += 1
        return [self.changes]


def test_a_value_is_kept_until_an_input_changes() -> None:
    """The same object comes again, and after a change a new one."""
    inputs = Inputs()
    derived = Derived(lambda: inputs.changes, inputs.compute)
    first = derived.get()
    assert derived.get() is first
    inputs.changes += 1
    assert derived.get() == [1]
    assert inputs.computed == 2


def test_a_change_while_a_value_is_computed_is_not_missed() -> None:
    """The value may have been made from what was there before the change, so it is computed once more."""
    inputs = Inputs()

    def compute() -> list[int]:
        found = inputs.compute()
        inputs.changes = 1
        return found

    derived = Derived(lambda: inputs.changes, compute)
    assert derived.get() == [0]
    assert derived.get() == [1]
    assert derived.get() == [1]
    assert inputs.computed == 2


def test_an_error_is_not_kept() -> None:
    """The next question computes again."""
    answers = iter([None, "found"])

    def compute() -> str:
        found = next(answers)
        if found is None:
            raise LookupError
        return found

    derived = Derived(lambda: 0, compute)
    with pytest.raises(LookupError):
        derived.get()
    assert derived.get() == "found"
