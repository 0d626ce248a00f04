"""Messages of `uninstall`: how much it removed, and why it refuses."""

from __future__ import annotations

from linkspan.agent import uninstall
from linkspan.cli.install import _summary
from linkspan.core.model import Endpoint

WEB = Endpoint(id="4f1c", ifname="eth0", name="web", network="front")


def test_one_object_of_a_kind_is_not_several() -> None:
    """Each kind has a singular."""
    assert _summary(["Sysctl a", "Process b", "File c", "Veth d", "Soup e"]) == [
        "1 link",
        "1 kernel setting",
        "1 helper program",
        "1 file",
        "1 other",
    ]
    assert _summary(["Veth a", "Bridge b", "/run/x"]) == ["2 links", "/run/x"]


def test_all_that_is_in_the_way_is_told_at_once() -> None:
    """Endpoints and users' own networks in one error, each with what to do about it."""
    assert uninstall.refusal([], []) is None
    told = uninstall.refusal([WEB], [("Docker network mine", "docker rm -f web; docker network rm mine")])
    assert told is not None
    assert told.message == "1 endpoint lives on this host (web on front); Docker network mine still uses linkspan"
    for words in ("detach them (or remove their containers)", "docker rm -f web; docker network rm mine", "--force"):
        assert words in told.hint
