from __future__ import annotations

import pytest

from linkspan.cluster.host_settings import require_known
from linkspan.core.errors import Invalid


@pytest.mark.parametrize("key", ["foo", "wiregard.port", "bgp", "wireguard_port"])
@pytest.mark.parametrize("of_all", [False, True])
def test_a_setting_that_nothing_reads_is_refused_by_its_name(key: str, of_all: bool) -> None:
    """A name mistyped would say that it is set, and change nothing."""
    with pytest.raises(Invalid, match=f"setting {key} is unknown") as error:
        require_known({"bgp.as": "64513", key: "1"}, of_all=of_all)
    assert "wireguard." in error.value.hint


def test_what_was_recorded_before_can_be_taken_back() -> None:
    """A newer version's setting, or one that was given before names were checked."""
    require_known({"foo": ""}, of_all=False)
    require_known({"foo": ""}, of_all=True)


def test_the_networks_of_a_host_are_names_or_all() -> None:
    """They may come later; what is no name is refused, for one host and for all."""
    for value in ("all", "demo", "demo, web", ""):
        require_known({"networks": value}, of_all=False)
        require_known({"networks": value}, of_all=True)
    with pytest.raises(Invalid, match="setting networks=demo,a b"):
        require_known({"networks": "demo,a b"}, of_all=True)


def test_a_host_is_drained_by_1_and_nothing_else() -> None:
    """Any text would drain it, 0 and false too."""
    require_known({"drained": "1"}, of_all=False)
    require_known({"drained": ""}, of_all=False)
    with pytest.raises(Invalid, match="drained=0 is neither 1 nor empty"):
        require_known({"drained": "0"}, of_all=False)


def test_hosts_are_drained_one_by_one() -> None:
    """One word for all hosts would leave no host that takes a container, and half of them would not see it."""
    with pytest.raises(Invalid, match="drained is one host's"):
        require_known({"drained": "1"}, of_all=True)
