"""Record of other packages' kinds, for an uninstall without the package."""

from __future__ import annotations

from pathlib import Path

from linkspan.core.kinds import Kind, Kinds
from linkspan.core.states.host import Bridge, Key, State
from linkspan.kernel.kinds import kinds
from linkspan.kernel.used_kinds import FILE, UsedKinds


class Cable(State, frozen=True, gc=False):
    """A link of a kind that linkspan does not have."""

    name: str

    @property
    def key(self) -> Key:
        """Its class and name."""
        return ("Cable", self.name)


CABLE = Kind(state=Cable, rank=1, known_by="a label", purpose="a cable")
BRIDGE = Bridge("ls-demo", b"\2\0\0\0\0\1", 1500)


def test_a_kind_of_another_package_is_named_where_the_package_is_gone(tmp_path: Path) -> None:
    """Nothing is written of linkspan's own kinds, and nothing is named while the package is there."""
    with_it = Kinds((*kinds(), CABLE))
    used = UsedKinds(tmp_path, with_it)
    used.note([BRIDGE])
    assert not (tmp_path / FILE).exists()
    used.note([BRIDGE, Cable("one")])
    assert UsedKinds(tmp_path, with_it).unknown() == []
    (told,) = UsedKinds(tmp_path, kinds()).unknown()
    assert told == (
        "objects of kind Cable (known by a label), which linkspan cannot see without the package "
        "test_used_kinds: install it and run linkspan uninstall again"
    )


def test_a_disk_that_takes_nothing_stops_no_network(tmp_path: Path) -> None:
    """The kind is still put."""
    (tmp_path / "state").touch()
    UsedKinds(tmp_path / "state", Kinds([CABLE])).note([Cable("one")])
