"""`linkspan status`, `events`, `version`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
import typer

from linkspan import SCHEMA, __version__
from linkspan.api.client import Client
from linkspan.cli.address import NOT_WELL
from linkspan.cli.output import (
    DEFAULT_SOCKET,
    Format,
    Output,
    Socket,
    ago,
    as_json,
    details,
    joined,
    moment,
    say,
    table,
)  # fmt: skip
from linkspan.core import namesakes
from linkspan.core.errors import counted
from linkspan.core.escapes import escaped
from linkspan.store.etcd_status import bytes_told

SHOWN = 10
"""Repairs that `status` shows."""


def status(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Show agent, store, networks, drift, unreachable peers, and the last repairs; exit 3 if there is a problem.

    A silent agent on another host is shown, but is no problem of this host and does not cause exit 3.
    `status` does not look inside containers: `linkspan diff` does.
    """
    found = Client(socket).call("GET", "/v1/status")
    as_json(found) if output is Format.JSON else _show_status(found)
    if not found.get("ok", True):  # a running agent may be older
        raise typer.Exit(NOT_WELL)


def disputes(found: list[dict[str, Any]]) -> None:
    """Print what two hosts claim, with the fix."""
    for dispute in found:
        say(f"conflict: {dispute['why']}; {dispute['fix']}")


def _show_status(found: dict[str, Any]) -> None:
    _show_agent(found)
    print()
    _show_networks(found)
    _show_problems(found)
    _show_sessions(found)
    _show_heals(found["heals"])


def _show_agent(found: dict[str, Any]) -> None:
    """Print what the agent is, and what is wrong with itself, its store and its objects."""
    agent, store, waits = found["agent"], found["store"], found.get("waiting", "")
    details(
        [
            ("agent", f"version {agent['version']}, pid {agent['pid']}, up {ago(agent['started'])}"),
            ("socket", agent["socket"]),
            ("state", agent["state_dir"]),
            ("store", _store(store)),
            *_etcd(store),
            ("drift", counted(len(found["drift"]), "problem") if found["drift"] else "not known" if waits else "none"),
        ]
    )
    if waits:
        say(f"  the agent waits: {waits}")
    for words in found["drift"]:
        say(f"  cannot repair: {words}")
    for words in _of_store(store):
        say(f"  store: {words}")
    for one in found.get("certificates", ()):  # a running agent may be older
        if one["problem"]:
            say(f"  certificate {one['name']}: {one['problem']}; {one['fix']}")
    for one in found.get("gone", ()):  # a running agent may be older
        say(
            f"  {one['endpoint']} of network {one['network']}: its namespace is gone; "
            f"the agent detaches it in {one['detached_in']:.0f} s, unless its runtime does"
        )
    for words in _of_journal(found):
        print(f"  {words}")
    if agent["version"] != __version__:
        say(f"  this program is version {__version__}: `sudo linkspan upgrade` restarts the agent with it")


def _show_networks(found: dict[str, Any]) -> None:
    rows = [(n["name"], n["backend"], n["endpoints"], n["free"]) for n in found["networks"]]
    none = "no network is known yet" if found.get("waiting") else "no network yet"
    table(("network", "backend", "endpoints", "addresses free"), rows, none)
    for network in found["networks"]:
        if network["not_switched"]:
            say(f"network {network['name']}: not switched: {joined(network['not_switched'])}")
        if fast := network.get("fast"):  # a running agent may be older
            say(f"network {network['name']}: {fast['words']}")


def _show_problems(found: dict[str, Any]) -> None:
    """Print conflicts, records that are not used, and hosts that cannot be reached or told apart."""
    if found["disputes"]:
        print()
        disputes(found["disputes"])
    if failing := found.get("records"):  # a running agent may be older
        print()
        lines = [(one["key"], one["host"] or "-", one["why"]) for one in failing]
        table(("record not used", "host", "why"), lines, "")
    if found["unreachable"]:
        print()
        lines = [(one["host"], one["network"] or "-", one["why"]) for one in found["unreachable"]]
        table(("problem: host", "network", "why"), lines, "")
    for one in found.get("namesakes", ()):  # a running agent may be older
        print()
        say(f"{namesakes.told(one['name'], one['ids'])}; {namesakes.FIX}")


def _show_sessions(found: dict[str, Any]) -> None:
    """Print BGP's and IPsec's sessions that are not up, and who controls the switches."""
    if found["bgp"]["down"]:
        print()
        downs = [(one["peer"], one["state"], one["why"]) for one in found["bgp"]["down"]]
        table(("BGP session down: peer", "state", "why"), downs, "")
    for one in found["bgp"].get("limited", ()):
        say(f"BGP peer {one['peer']}: {one['why']}; {one['fix']}")
    for one in found["bgp"].get("warnings", ()):  # a running agent may be older
        say(f"BGP: {one['why']}; {one['fix']}")
    ipsec = found.get("ipsec", {"waiting": 0})  # a running agent may be older
    if ipsec["waiting"]:
        print()
        say(
            f"IPsec: {ipsec['up']} of {counted(ipsec['peers'], 'peer')} are up; {ipsec['waiting']} wait for their turn "
            "to be started"
        )
    if (active := found.get("controller")) is not None:  # a running agent may be older, and not have it
        what = f"{active} is active; `linkspan controller status` on its machine shows the switches"
        none = "none is active: traffic continues, and switches learn nothing new; `linkspan controller` starts one"
        print()
        say(f"controller: {what if active else none}")


def _show_heals(heals: list[dict[str, Any]]) -> None:
    """Print the last repairs."""
    if not heals:
        return
    rows = [(f"{ago(h['at'])} ago", h["kind"], h["key"], h.get("inside") or "-", h["what"]) for h in heals[-SHOWN:]]
    print()
    table(("repaired", "object", "key", "inside", "what"), rows, "")
    if len(heals) > SHOWN:
        print("and earlier ones: `linkspan events`")


def _store(store: dict[str, Any]) -> str:
    """Return the store's place and state, and when it last answered if it does not answer now."""
    words = [store["url"].partition("?")[0]]
    if not store["ok"]:
        words.append(store.get("state", "not ok"))
    if store.get("state") == "away":
        answered = store["answered"]
        words.append("no answer since the agent started" if answered is None else f"last answer {ago(answered)} ago")
    return ", ".join(words)


def _of_store(store: dict[str, Any]) -> Iterator[str]:
    if store["problem"]:
        fix = store.get("fix", "")
        yield store["problem"].removeprefix("store ") + (f"; {fix}" if fix else "")
    etcd = store.get("etcd") or {"members": [], "problems": []}  # an agent that still runs may be older
    for one in etcd["problems"]:
        yield f"{one['what']}; {one['fix']}" if one["fix"] else one["what"]


def _etcd(store: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the line about etcd's members: names, version, and the largest file of a member."""
    etcd = store.get("etcd")
    if not etcd:
        return []
    seen = [one for one in etcd["members"] if not one["problem"]]
    words = [counted(len(etcd["members"]), "member")]
    words += [f"etcd {version}" for version in sorted({one["version"] for one in seen})]
    if seen:
        largest = max(seen, key=lambda one: one["size"])
        quota = f" of {bytes_told(largest['quota'])}" if largest["quota"] > 0 else ""
        words.append(f"{bytes_told(largest['size'])}{quota}, {bytes_told(largest['in_use'])} in use")
    words += [f"alarm {one['alarm']}" for one in etcd["alarms"]]
    words += [f"as of {ago(etcd['at'])} ago"] if store.get("state") == "away" else []
    return [("etcd", ", ".join(words))]


def _of_journal(found: dict[str, Any]) -> Iterator[str]:
    """Yield what the journal had lost at the agent's start; a running agent may be older."""
    rebuilt = found.get("rebuilt", {"endpoints": 0, "unnamed": []})
    if rebuilt["endpoints"]:
        many = counted(rebuilt["endpoints"], "endpoint")
        verb = "was" if rebuilt["endpoints"] == 1 else "were"
        yield f"{rebuilt['why']}: {many} {verb} rebuilt from the store and the kernel"
    for name in rebuilt["unnamed"]:
        yield f"{name}: its container's id is unknown; its runtime's next call, or `attach`, provides it"
    for one in found.get("orphans", ()):
        yield f"{one['what']} is an orphan, and is removed in {one['removed_in']:.0f} s"


def events(
    last: Annotated[int | None, typer.Option("--last", "-n", metavar="N", help="Only the last N.")] = None,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Only since 90s, 10m, 2h or 3d ago, 20:15 or 2026-01-31 20:15.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new events until interrupted.")] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Show the last 1,000 events: attach, detach, agent, network, store, lease, peer, heal, reap, names, key, bgp."""
    if last is not None and last < 0:
        raise typer.BadParameter(f"{last} is less than 0", param_hint="--last")
    query: dict[str, object] = {"follow": ""} if follow else {}
    query |= {} if last is None else {"last": last}
    query |= {"since": moment(since, "--since")} if since else {}
    for line in Client(socket).lines(f"/v1/events?{urlencode(query)}"):
        if output is Format.JSON:
            print(escaped(line.decode().rstrip()), flush=True)
        else:
            event = Client.shown(msgspec.json.decode(line))
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
            say(f"{at}  {event['type']:<8}  {event['what']}")
            sys.stdout.flush()


def version(output: Output = Format.TABLE) -> None:
    """Show the version of the program and of its records."""
    if output is Format.JSON:
        as_json({"version": __version__, "schema": SCHEMA})
    else:
        print(f"linkspan {__version__} (schema {SCHEMA})")
