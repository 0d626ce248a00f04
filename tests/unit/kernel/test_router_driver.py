"""A router's routes by FRR's words, against a router that is here."""

from __future__ import annotations

from linkspan.core.addresses import prefix
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.openflow import RouterRoute
from linkspan.kernel.drivers.frr import KINDS, TAG, FrrDriver

BLOCK = "10.244.1.0/24"
OTHERS = f"ip route {BLOCK} 192.0.2.7 tag 5"


class HereRouter(FrrDriver):
    """It has several routes to one prefix where it is reported several, as FRR has."""

    def __init__(self, *lines: str) -> None:
        super().__init__("r1", "vtysh:", {})
        self.lines = list(lines)

    def _vtysh(self, *commands: str) -> str:
        for command in commands[1:]:
            if command.startswith("no "):
                self.lines.remove(command.removeprefix("no "))
            elif command not in self.lines:
                self.lines.append(command)
        return "\n".join(self.lines)


def _line(via: str) -> str:
    return f"ip route {BLOCK} {via} tag {TAG}"


def test_a_host_whose_address_changed_leaves_no_route_by_the_old_one() -> None:
    """Nor does one from before, beside the right one; a foreign route stays."""
    for before in ([_line("192.0.2.1")], [_line("192.0.2.1"), _line("192.0.2.2")], [_line("192.0.2.2")], []):
        router = HereRouter(OTHERS, *before)
        reconciler = Reconciler((kind, router) for kind in KINDS)
        reconciler.desired.replace(("controller",), [RouterRoute(prefix(BLOCK), prefix("192.0.2.2").packed)])
        assert reconciler.resync().failed == {}
        assert router.lines == [OTHERS, _line("192.0.2.2")]
        assert not any(reconciler.difference()[0].put + reconciler.difference()[0].delete)
        reconciler.desired.replace(("controller",), [])
        reconciler.resync()
        assert router.lines == [OTHERS]
