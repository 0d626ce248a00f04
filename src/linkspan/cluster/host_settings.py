"""Settings of hosts: each host's own in its record, those of all hosts, and the cluster's; checked before writing."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from linkspan.backends import BACKENDS
from linkspan.cluster import participation
from linkspan.cluster.hosts import Hosts
from linkspan.core.errors import Invalid
from linkspan.core.model import Host
from linkspan.store.compare_and_swap import revised
from linkspan.store.records import COMMON, SETTINGS, ClusterSettings, Common
from linkspan.store.replica import Replica
from linkspan.store.validation import RECLAIM_AFTER

SHORTEST = 60.0
"""Shortest `reclaim_after` in seconds: the silent host and the others must notice the silence in time."""

_PREFIXES = tuple(f"{name}." for name, way in BACKENDS.items() if way.has_settings)


def require_known(changes: Mapping[str, str], *, of_all: bool) -> None:
    """Raise Invalid for a setting that no part of linkspan reads.

    Check only the ``changes``: records may have settings that only newer hosts know.
    """
    for key, value in changes.items():
        if key == "drained" and of_all:
            raise Invalid("setting drained is one host's, not all hosts'", "linkspan host drain HOST")
        if key == "drained" and value not in ("", "1"):
            raise Invalid(f"setting drained={value} is neither 1 nor empty", "linkspan host drain HOST, or undrain")
        if key == participation.SETTING:
            participation.check(value)
        elif value and key != "drained" and not key.startswith(_PREFIXES):
            there = ", ".join((participation.SETTING, *(f"{prefix}.." for prefix in _PREFIXES)))
            raise Invalid(f"setting {key} is unknown", f"there are {there} (docs/settings.md)")


async def change(replica: Replica, hosts: Hosts, host: Host, changes: Mapping[str, str]) -> Host:
    """Change a host's settings (an empty value unsets one), and return its record; the host adopts them later.

    Raises Invalid, which names the setting, and as ``revised`` does.
    """
    require_known(changes, of_all=False)

    def changed() -> Host:
        known = hosts.record(host.id) or host
        found = msgspec.structs.replace(known, settings=_merged(known.settings, changes))
        _check(hosts.whole(found))
        return found

    return await revised(replica, f"hosts/{host.id}", changed)


async def change_common(replica: Replica, hosts: Hosts, changes: Mapping[str, str]) -> dict[str, str]:
    """Change the settings that all hosts share, and return them.

    Raises Invalid, which names the setting and the host whose own settings contradict it, and as ``revised`` does.
    """
    require_known(changes, of_all=True)

    def changed() -> Common:
        settings = _merged(hosts.common(), changes)
        _check(Host(id="", name="", settings=settings))
        for host in hosts.all().values():
            try:
                _check(msgspec.structs.replace(host, settings={**settings, **host.settings}))
            except Invalid as error:
                raise error.within(f"with the settings of host {host.name}") from error
        return Common(settings)

    return (await revised(replica, COMMON, changed)).settings


async def change_cluster(replica: Replica, **changes: float) -> ClusterSettings:
    """Change the cluster's own settings, and return them; a simultaneous change by another host is kept.

    Raises Invalid for a ``reclaim_after`` that is too short or too long, and as ``revised`` does.
    """
    after, longest = changes.get("reclaim_after", 0), RECLAIM_AFTER[1]
    if after and not SHORTEST <= after <= longest:
        short = "too short: a host would withdraw during a short outage of the store"
        long = "too long: no host would accept the record"
        raise Invalid(
            f"reclaim_after {after:g} s is {short if after < SHORTEST else long}",
            f"give {SHORTEST:.0f} to {longest:.0f} seconds (366 days), or 0 for never",
        )
    return await revised(replica, SETTINGS, lambda: msgspec.structs.replace(replica.settings, **changes))


def _merged(settings: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in {**settings, **changes}.items() if value}


def _check(host: Host) -> None:
    """Raise Invalid for a setting whose value its backend does not accept."""
    for way in BACKENDS.values():
        way.check_settings(host)
