"""Host backend: containers share the host's namespace and addresses; linkspan assigns the host's ports.

A packet's walk is the host's own: there is no link, route or rule to make. A network of this backend provides
only the agreement on ports: an endpoint names the ports on which its container will listen, and no other
endpoint gets them. Runtimes call no network plugin for such containers; `linkspan attach` does.
"""

from __future__ import annotations

from linkspan.backends.base import BaseBackend
from linkspan.core.errors import Invalid
from linkspan.core.model import Network


class HostBackend(BaseBackend):
    """A backend without states."""

    name = "host"
    no_exit = "its containers have the host's own addresses"

    def check(self, network: Network) -> None:
        """Refuse pools and options, which have no meaning here."""
        if network.pools or network.options:
            raise Invalid(
                f"network {network.name}: backend host takes no pool and no option",
                "its containers have the host's own addresses",
            )


BACKEND = HostBackend()
