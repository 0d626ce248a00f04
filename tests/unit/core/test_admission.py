"""Rules that admit what other hosts send: by the devices that the kinds declare, whatever they are called."""

from __future__ import annotations

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.kinds import Admission, Kind, Kinds
from linkspan.core.ruleset import admission
from linkspan.core.states.host import Key, State
from linkspan.kernel.kinds import kinds

POOL = prefix("10.77.0.0/16")
BLOCK, ADDRESS = "ip saddr & 255.255.255.0", "ip saddr"


class Tube(State, frozen=True, gc=False):
    """A tunnel device that linkspan does not have."""

    name: str

    @property
    def key(self) -> Key:
        """Its class and name."""
        return ("Tube", self.name)


def _rules(how: Admission | None) -> list[str]:
    admits = {} if how is None else {"lstube": how}
    tube = Kind(state=Tube, rank=1, known_by="", purpose="", names=("lstube",), admits=admits)
    return [rule for rule in admission(POOL, 24, Kinds([tube])).rules if "lstube" in rule]


@pytest.mark.parametrize(
    ("how", "rules"),
    [
        (None, []),
        (
            Admission.VTEP,
            [
                f'iifname "lstube" iifname . ether saddr . {BLOCK} @vteps4 goto admitted',
                f'iifname "lstube" iifname . ether saddr . {ADDRESS} @vteps_exact4 goto admitted',
                'iifname "lstube" drop',
            ],
        ),
        (
            Admission.MARK,
            [
                f'iifname "lstube" meta mark . {BLOCK} @marks4 meta mark set 0x00000000 goto admitted',
                f'iifname "lstube" meta mark . {ADDRESS} @marks_exact4 meta mark set 0x00000000 goto admitted',
            ],
        ),
    ],
)
def test_a_device_is_asked_for_what_its_kind_declares(how: Admission | None, rules: list[str]) -> None:
    """By the peer's MAC or its mark; without a declaration only the rules for all devices concern it."""
    assert _rules(how) == rules


def test_only_names_that_a_kind_reserves_are_admitted() -> None:
    """Another program's device would have the rules of ours."""
    assert [kind.name for kind in kinds() if not set(kind.admits) <= set(kind.names)] == []
