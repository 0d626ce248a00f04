"""Fixtures of the tests on the real kernel."""

from support.netns.machine_fixtures import container, host, machine, outside, spaces
from support.netns.overlay import trio

__all__ = ["container", "host", "machine", "outside", "spaces", "trio"]
