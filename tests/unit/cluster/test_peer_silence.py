"""Events about peers that stop to answer pings, and that answer again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import msgspec

from linkspan.cluster.peer_ping import PeerPings, _Awaited
from linkspan.cluster.peer_silence import Pair, changes
from linkspan.core.event_log import EventLog
from linkspan.core.host_view import Peer
from support.records.peers import lease, network, peer

KNOWN: list[Pair] = [(net, f"id{number}") for number in range(1, 9) for net in ("demo", "web")]


def told(before: list[Pair], silent: list[Pair], known: list[Pair] = KNOWN) -> list[tuple[str, dict[str, str]]]:
    """Return the events of a round."""
    found = changes(before, dict.fromkeys(silent, "no answer for 6 s"), known, lambda id_: id_.replace("id", "h"))
    return [(one.what, one.about) for one in found]


def test_a_host_that_is_cut_off_is_one_event_with_its_networks_and_one_when_it_answers() -> None:
    """And none while it stays so."""
    pairs: list[Pair] = [("demo", "id3"), ("web", "id3")]
    about = {"host": "h3", "network": "demo, web"}
    assert told([], pairs) == [
        ("host h3 does not answer pings in network demo, web: no answer for 6 s", about)
    ]
    assert told(pairs, pairs) == []
    assert told(pairs, []) == [("host h3 answers pings again in network demo, web", about)]


def test_many_hosts_at_once_are_one_event_with_their_number() -> None:
    """A broken switch does not push all older events out of the log."""
    assert told([], KNOWN) == [("8 hosts do not answer pings: h1, h2, h3 and 5 more", {"hosts": "8"})]
    assert told(KNOWN, []) == [("8 hosts answer pings again: h1, h2, h3 and 5 more", {"hosts": "8"})]


def test_a_host_that_left_does_not_answer_again() -> None:
    """Its record is gone, and nobody pings it."""
    assert told([("demo", "id3")], [], [("demo", "id1")]) == []


def test_the_log_has_an_event_for_each_change_and_none_in_between(tmp_path: Path) -> None:
    """A peer becomes silent, stays so, and answers."""
    log = EventLog(tmp_path / "events")
    one = peer(network("vxlan", (4,)), {})
    pings = PeerPings({("demo", "id2"): one}, log)
    address = one.lease.addresses[0].split("/")[0]
    pings._echoes = {4: cast("Any", object())}
    for since in (1e-9, 20, 25, None):
        now = time.monotonic()
        pings._awaited = {} if since is None else {address: _Awaited(("demo", "id2"), 4, now - since, 9)}
        pings._log_changes()
    said = [event.what.split(" in network")[0] for event in log.kept("peer")]
    assert said == [f"host {one.host.name} does not answer pings", f"host {one.host.name} answers pings again"]


def test_an_address_that_a_peer_no_longer_has_is_not_missed(tmp_path: Path) -> None:
    """It came back with another block; nor is anybody missed once the pings have ended."""
    pair, asked = ("demo", "id2"), network("vxlan", (4,))
    one = peer(asked, {})
    peers: dict[Pair, Peer] = {pair: one}
    pings = PeerPings(peers, EventLog(tmp_path / "events"))
    pings._echoes = {4: cast("Any", object())}
    address = one.lease.addresses[0].split("/")[0]
    pings._awaited = {address: _Awaited(pair, 4, time.monotonic() - 20, 9)}
    assert pings.silent().keys() == {pair}
    peers[pair] = msgspec.structs.replace(one, lease=lease(3, asked))
    assert pings.silent() == {}
    peers[pair] = one
    pings._echoes = {}
    assert pings.silent() == {}
