"""Fabric: an underlay's switches as they are now, with the port of each host and the links between switches.

Nothing is configured. The controller asks hosts by ARP (or neighbour solicitation) from the gateway's MAC,
and switches send each other LLDP frames. Both reach a flow of ours, which notes port and sender in a table of
the switch itself. So a new controller knows at once what the one before had found out.

A host stays where it was last seen: its port may be down, or the note may have been lost with the switch. The
fabric believes a new place once the host is seen there and no longer at the old one. A host seen at both
stays, and is reported. A MAC that two hosts claim moves neither, because nobody knows which of them was seen.

A link between switches begins when both ends have heard each other. Packets from it count as checked, so a
host that repeats a switch's frames must not turn its own port into a link. The link is "up" while both ends
hear each other and both ports are up. It is "silent" while only the ports are up; then it is used if no other
link is left, because a link that seems dead may still carry packets, and no link never does. A link that
often fell recently is used again after a growing backoff.

A switch that starts has no flows, and forwards LLDP frames that it should note. Two of its neighbours then hear each
other through it, and once it has flows it drops what they would send each other that way. So a known link yields to
another one only if its cable was moved: a port of it is down, its far end hears somebody else, or it was silent for
FORGOTTEN. If a port hears several others, its link is to the one that hears nobody else.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping

from linkspan.core.states.openflow import Map, Seen, Spot

SILENT_COST = 1000
"""Cost of a silent link, where a link that is up costs 1: more than any path of links that are up."""
STEADY = 10.0
"""Seconds after which a fall is forgotten."""
LONGEST = 30.0
FORGOTTEN = 60.0
"""Seconds after which a silent link with both ports up is forgotten: somebody changed the cables."""
AWAY = 5.0
"""Seconds without an observation after which a switch counts as silent."""


class Fabric:
    """Remembers where hosts and links were seen; ``take`` gets the current observations."""

    def __init__(self) -> None:
        self.places: dict[str, Spot] = {}
        self.doubles: dict[str, str] = {}
        """By host id: the message about a host that is seen at two ports."""
        self.seen: dict[str, Seen] = {}
        self._links: dict[Spot, Spot] = {}
        """Both ends of each, by each of them."""
        self._answered: dict[str, float] = {}
        """When each switch was last observed."""
        self._heard: dict[Spot, float] = {}
        self._falls: dict[Spot, list[float]] = {}
        self._up: dict[Spot, bool] = {}

    def take(
        self, seen: Mapping[str, Seen], macs: Mapping[str, str], probes: Mapping[str, Spot], now: float
    ) -> Map:
        """Return the resulting map. ``macs`` are hosts' by id, ``probes`` map a MAC to the sender of its LLDP frame.

        A switch that was not reached is missing in ``seen``, and keeps its state.
        """
        self.seen.update(seen)
        self._answered.update(dict.fromkeys(seen, now))
        heard = self._sightings(probes)
        self._locate(macs, heard.keys())
        mutual = {here: {there for there in senders if here in heard.get(there, ())} for here, senders in heard.items()}
        fresh = dict(self._chosen(mutual))
        self._links |= fresh
        self._heard |= dict.fromkeys(fresh, now)
        self._forget({here for here, others in mutual.items() if others and here not in fresh}, now)
        links = []
        for here, there in sorted(self._links.items()):
            if not (self.seen[here[0]].up(here[1]) and self.seen[there[0]].up(there[1])):
                self._note(here, up=False, now=now)
                continue
            up = fresh.get(here) == there
            self._note(here, up=up, now=now)
            links.append((here, there[0], 1 if up and self._steady(here, now) else SILENT_COST))
        places = ((host, spot) for host, spot in self.places.items() if spot[0] in self.seen)
        ports = ((name, tuple(port.number for port in one.ports)) for name, one in self.seen.items())
        return Map(tuple(sorted(self.seen)), tuple(sorted(places)), tuple(links), tuple(sorted(ports)))

    def _forget(self, contradicted: Collection[Spot], now: float) -> None:
        """Forget links whose port now has a host, or that were silent for long: their packets would be trusted.

        A switch that does not answer cannot be made to send its LLDP frames, so its silence means nothing, unless
        the port that leads to it is ``contradicted``: another switch is heard there.
        """
        hosts = set(self.places.values())
        for here, there in list(self._links.items()):
            away = any(now - self._answered[name] > AWAY for name, _ in (here, there))
            if away and here not in contradicted and there not in contradicted:
                self._heard[here] = now
            ends = all(self.seen[name].up(number) for name, number in (here, there))
            silent = ends and now - self._heard[here] > FORGOTTEN
            if silent or hosts & {here, there} or self._links.get(there) != here:
                del self._links[here]

    def _sightings(self, probes: Mapping[str, Spot]) -> dict[Spot, set[Spot]]:
        """Return who is heard at which port: several if a switch without flows forwards the frames."""
        found: dict[Spot, set[Spot]] = {}
        for name, one in self.seen.items():
            for number, address in one.notes:
                if (sender := probes.get(address)) is not None and sender[0] != name:
                    found.setdefault((name, number), set()).add(sender)
        return found

    def _chosen(self, mutual: Mapping[Spot, set[Spot]]) -> Iterable[tuple[Spot, Spot]]:
        """Yield each port with the far end of its cable, out of the ports with which it has heard each other."""
        for here, others in mutual.items():
            known = self._links.get(here)
            found = {there for there in others if mutual[there] == {here}} or others
            if known in found:
                yield here, known
            elif len(found) == 1 and (known is None or not self._holds(here, known, mutual)):
                yield here, next(iter(found))

    def _holds(self, here: Spot, there: Spot, mutual: Mapping[Spot, set[Spot]]) -> bool:
        """Return whether a link's cable may be where it was: both ports are up, and the far end hears no port."""
        return all(self.seen[name].up(number) for name, number in (here, there)) and not mutual.get(there)

    def _locate(self, macs: Mapping[str, str], heard: Container[Spot]) -> None:
        """Find hosts; a host seen behind another switch was forwarded by that switch, which had no flows yet."""
        at: dict[str, list[Spot]] = {}
        for name, one in sorted(self.seen.items()):
            for number, address in one.notes:
                if one.up(number) and (name, number) not in heard:
                    at.setdefault(address, []).append((name, number))
        owners: dict[str, list[str]] = {}
        for host, address in macs.items():
            owners.setdefault(address, []).append(host)
        self.doubles = {}
        for host, address in macs.items():
            spots, old = at.get(address, []), self.places.get(host)
            if len(owners[address]) > 1:
                continue
            if spots and old not in spots:
                self.places[host] = spots[0]
            if len(spots) > 1:
                kept = self.places[host]
                others = ", ".join(f"{s} port {n}" for s, n in spots if (s, n) != kept)
                self.doubles[host] = f"its MAC {address} is seen at {kept[0]} port {kept[1]} and at {others}"
        for host in self.places.keys() - macs.keys():
            del self.places[host]

    def _note(self, link: Spot, *, up: bool, now: float) -> None:
        falls = [at for at in self._falls.get(link, []) if now - at < STEADY + LONGEST]
        if self._up.get(link) and not up:
            falls.append(now)
        self._falls[link], self._up[link] = falls, up

    def _steady(self, link: Spot, now: float) -> bool:
        """Return whether a link may be used: after its first fall at once, then with doubling backoff."""
        falls = self._falls.get(link, [])
        wait = min(2.0 ** (len(falls) - 1), LONGEST) if len(falls) > 1 else 0.0
        return not falls or now - falls[-1] >= wait
