"""A lab whose hosts encrypt by IPsec, and what their daemons say."""

from __future__ import annotations

from typing import Any

from linkspan.kernel.io import vici
from support.lab.encrypted_runs import SecretRun
from support.lab.migration_runs import HOSTS
from support.polling import SHARED, until


class IpsecRun(SecretRun):
    """A lab whose hosts encrypt by IPsec."""

    def asks(self, host: str) -> Any:
        """Return the way to a host's daemon."""
        return vici.session(self.folder / host / "state/ipsec/charon.vici")

    def spis(self, host: str) -> set[str]:
        """Return the SPIs by which a host receives."""
        with self.asks(host) as asked:
            return {child.spi_in for one in vici.associations(asked) for child in one.children if child.installed}

    def set(self, host: str, **settings: str) -> None:
        """Change a host's settings of IPsec."""
        wish = {f"ipsec.{word.replace('_', '-')}": value for word, value in settings.items()}
        self.call("h1", "PATCH", f"/v1/hosts/{host}", wish)

    def cut_off(self, source: str, target: str) -> None:
        """Wait until a container does not reach another."""
        until(lambda: self.silent(source, self.address(target)), f"{source} does not reach {target}")

    def reaches(self, source: str, target: str) -> None:
        """Wait until a container reaches another."""
        until(lambda: not self.silent(source, self.address(target)), f"{source} reaches {target}", 40 * SHARED)

    def peers_tell(self, reason: str) -> None:
        """Wait until a peer of h3 has a reason in its status."""
        until(lambda: reason in self.not_well("h1") + self.not_well("h2"), reason, 40 * SHARED)

    def well(self) -> None:
        """Wait until no host misses anything."""
        for host in HOSTS:
            until(lambda host=host: "IPsec" not in self.not_well(host), f"{host} is ok", 40 * SHARED)
        self.clean()
