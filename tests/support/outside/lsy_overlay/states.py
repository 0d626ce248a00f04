"""States of the backend besides linkspan's own kinds."""

from __future__ import annotations

from linkspan.core.addresses import Prefix
from linkspan.core.states.host import ALTNAME, Key, State


class Overlay(State, frozen=True, gc=False):
    """A VXLAN device at a port of its own; ``local`` is the packed underlay address that it sends from."""

    name: str
    vni: int
    mac: bytes
    mtu: int
    port: int
    local: bytes
    up: bool = True

    @property
    def key(self) -> Key:
        """Its class and name."""
        return ("Overlay", self.name)

    @property
    def altname(self) -> str:
        """The alternative name by which the device is known as ours."""
        return f"{ALTNAME}{self.name}"


class HostRule(State, frozen=True, gc=False):
    """A rule of the host's routing policy: what comes from ``prefix`` is looked up in the main table."""

    priority: int
    prefix: Prefix

    @property
    def key(self) -> Key:
        """Its class, priority and prefix."""
        return ("HostRule", self.priority, self.prefix.packed, self.prefix.length)

    @property
    def label(self) -> str:
        """It as people write it."""
        return f"{self.priority} from {self.prefix} lookup main"
