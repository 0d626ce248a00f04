"""Own record: the record of this host, which the agent writes into the store."""

from __future__ import annotations

import msgspec

from linkspan.core.model import Host


class OwnRecord:
    """The desired record of this host, and the only place where it changes.

    Several tasks change fields of it, each on the event loop: the underlay, the settings, the keys, the control plane.
    A task that took the record, waited, and put back a copy would undo what others changed meanwhile. So a change
    names its fields, and applies to the current record.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    @property
    def host(self) -> Host:
        """The current record."""
        return self._host

    def change(self, **fields: object) -> Host:
        """Change fields of the record, and return the new one."""
        self._host = msgspec.structs.replace(self._host, **fields)
        return self._host
