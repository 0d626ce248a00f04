"""Host networking: containers share the host's namespace and addresses; linkspan keeps the host's ports apart.

A packet's walk is the host's own: there is no link, route or rule to make. What a network of this backend
gives is the agreement on ports: an endpoint names the ports that its container will listen on, and no other
endpoint is given them. Runtimes call no network plugin for such containers; `linkspan attach` does.
"""

from __future__ import annotations

from linkspan.backends.base import BaseBackend
from linkspan.core.errors import Invalid
from linkspan.core.model import Network


class HostBackend(BaseBackend):
    """No state at all."""

    name = "host"

    def check(self, network: Network) -> None:
        """Pools and options have no meaning here."""
        if network.pools or network.options:
            raise Invalid(
                f"network {network.name}: backend host takes no pool and no option",
                "its containers have the host's own addresses",
            )


BACKEND = HostBackend()
