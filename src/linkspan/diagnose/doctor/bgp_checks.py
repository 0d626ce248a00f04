"""Doctor's checks of the BGP speaker and its sessions; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from linkspan.diagnose.doctor.bgp_reasons import Why
from linkspan.diagnose.doctor.checks import Check


def checks(
    sessions: Mapping[str, Why | None],
    silent: Why | None,
    full: Mapping[str, Why] | None = None,
    crowded: Why | None = None,
) -> Iterator[Check]:
    """Yield one check of the speaker, and one of each session that is down; nothing without a desired session.

    ``sessions`` are the reasons by the peer's name, None for an established one. ``full`` are those whose
    peer announces more than is accepted. ``crowded`` is why the mesh is too large.
    """
    if silent is not None:
        yield Check("BGP speaker", "fail", silent.reason, silent.fix)
    elif sessions:
        up = sum(why is None for why in sessions.values())
        yield Check("BGP speaker", "ok", f"BIRD answers; {up} of {len(sessions)} sessions are established")
        for name, why in sessions.items():
            if why is not None:
                yield Check(f"BGP session {name}", "fail", why.reason, why.fix)
        for name, why in (full or {}).items():
            yield Check(f"BGP session {name}", "warn", why.reason, why.fix)
        if crowded is not None:
            yield Check("BGP mesh", "warn", crowded.reason, crowded.fix)
