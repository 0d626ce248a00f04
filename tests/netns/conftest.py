"""Fixtures of the tests on the real kernel."""

from machine_fixtures import container, machine, outside, spaces

__all__ = ["container", "machine", "outside", "spaces"]
