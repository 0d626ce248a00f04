"""Checks from all hosts' findings about the underlay between them, with host, direction and protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from linkspan.diagnose.doctor.checks import Check
from linkspan.diagnose.doctor.peer_probe import Gap, Probed, Refusal


def checks(found: Mapping[str, Probed | str], names: Mapping[str, str]) -> list[Check]:
    """Return the checks: failures for each direction by itself, then successes, all directions in one.

    ``found`` has each host's (by id) answer, or why it gave none: then it is named once, and none of its
    pairs. So is a host whose own link is down.
    """
    answers = {host: answer for host, answer in found.items() if isinstance(answer, Probed)}
    told = {host: answer for host, answer in answers.items() if not answer.down}
    faults = [*_refused(told, names), *_missing(told, names)]
    bad = [*_down(answers, names), *_silent(found, names), *sorted(faults, key=lambda check: check.check)]
    left_out = sum(answer.left_out for answer in told.values())
    if left_out:
        bad.append(
            Check("underlay", "fail", f"{left_out} more faults, of the same hosts", "fix those above first")
        )
    return [*bad, *_passing(told)]


def _down(answers: Mapping[str, Probed], names: Mapping[str, str]) -> Iterator[Check]:
    for host, answer in answers.items():
        if answer.down:
            why = f"its link {answer.down} to the other hosts is down, or has no carrier: nothing reaches it"
            fix = f"on that host: `ip link set {answer.down} up`; if it is up, look at the cable and the switch"
            yield Check(f"underlay: host {names[host]}", "fail", why, fix)


def _silent(found: Mapping[str, Probed | str], names: Mapping[str, str]) -> Iterator[Check]:
    for host, answer in found.items():
        if isinstance(answer, str):
            fix = "is its agent running, and does it reach the store? run `linkspan status` there"
            yield Check(f"underlay: host {names[host]}", "fail", f"it does not take part: {answer}", fix)


def _refused(told: Mapping[str, Probed], names: Mapping[str, str]) -> Iterator[Check]:
    for host, answer in told.items():
        for one in answer.refusals:
            if one.peer not in told:
                continue
            check = _named(names, host, one.peer, one.what)
            if one.spare:
                yield Check(check, "warn", f"not used; the tunnel is used instead: {one.why}", "")
            else:
                yield Check(check, "fail", f"{names[host]} cannot send it: {one.why}", one.fix)


def _missing(told: Mapping[str, Probed], names: Mapping[str, str]) -> Iterator[Check]:
    refusals = {(host, one.peer, one.what): one for host, answer in told.items() for one in answer.refusals}
    for host, answer in told.items():
        for gap in answer.gaps:
            if gap.peer in told and not _explained(gap, refusals.get((gap.peer, host, gap.what))):
                yield Check(
                    _named(names, gap.peer, host, gap.what), "fail", _words(gap, names, host), gap.fix
                )


def _explained(gap: Gap, refusal: Refusal | None) -> bool:
    """Return whether a gap exists only because the sender could not send."""
    return refusal is not None and not gap.dropped and gap.heard >= refusal.sent


def _words(gap: Gap, names: Mapping[str, str], host: str) -> str:
    if gap.dropped:
        return f"it arrives at {names[host]}, where {gap.dropped}"
    if gap.heard:
        return (
            f"packets of {gap.size} bytes do not arrive at {names[host]}, those of {gap.heard} do (DF is set)"
        )
    return f"blocked: no packet from {names[gap.peer]} arrives at {names[host]}"


def _named(names: Mapping[str, str], source: str, target: str, what: str) -> str:
    return f"underlay {names[source]} to {names[target]}: {what}"


def _passing(told: Mapping[str, Probed]) -> Iterator[Check]:
    figures: dict[str, tuple[int, int]] = {}
    for answer in told.values():
        for one in answer.carried:
            size, count = figures.get(one.what, (0, 0))
            figures[one.what] = max(size, one.size), count + one.count
    for what, (size, count) in sorted(figures.items()):
        ways = "1 direction" if count == 1 else f"{count} directions"
        yield Check(f"underlay: {what}", "ok", f"passes in {ways}, with packets of up to {size} bytes")
