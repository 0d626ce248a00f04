"""Fixtures of the tests on the real kernel."""

from support.netns.machine_fixtures import container, host, machine, outside, spaces

__all__ = ["container", "host", "machine", "outside", "spaces"]
