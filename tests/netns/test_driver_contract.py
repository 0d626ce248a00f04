"""The contract of drivers on the real kernel; the fake kernel of unit tests passes the same checks."""

from __future__ import annotations

from linkspan.kernel.machine import Machine
from support import driver_contract


def test_the_kernel_s_drivers_hold_the_contract(host: Machine) -> None:
    """Puts and deletes can be repeated, and deleting a link deletes what is on it."""
    driver_contract.holds(host.reconciler)
