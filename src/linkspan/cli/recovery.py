"""`linkspan cluster snapshot`, `restore` and `recover`: for the day on which the voters' data are lost."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

import typer

from linkspan.api.client import Client
from linkspan.cli.agent_start import ensure_answer
from linkspan.cli.founding import AGAIN, PATIENCE, ConfigFile
from linkspan.cli.install import require_root
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, as_json, step
from linkspan.core.errors import LinkspanError, Unavailable


def snapshot(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write it; an earlier one is replaced.")],
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Write the records of all hosts to a file, on a voter. Keep it secret, and on another machine.

    Voters also take one every 12 hours, into `snapshots` in their state folder, and keep seven.
    """
    with step("snapshot"):
        taken = Client(socket).call("POST", "/v1/cluster/snapshot", {"file": os.path.abspath(file)})  # noqa: PTH100
    if output is Format.JSON:
        as_json(taken)
        return
    print(f"snapshot {taken['file']}: {taken['bytes']} bytes, checked")


def restore(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A snapshot.")],
    config_file: ConfigFile = "",
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Make this host the cluster's voter, with the records of a snapshot. Containers keep running.

    On the voter, the other hosts follow by themselves. On another host, or after the voter's disk was lost, they join
    again. It may be repeated after a failure.
    """
    client = _agent(socket, config_file)
    with step("the snapshot's records, tried beside etcd, and put in its place"):
        made = client.call("POST", "/v1/cluster/restore", {"file": os.path.abspath(file)})  # noqa: PTH100
    _tell(client, made, output, f"has the records of {file}")


def recover(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Go on with this voter alone, after most voters were lost for good. Containers keep running.

    It is refused while the cluster still has its quorum. It may be repeated after a failure.
    """
    client = _agent(socket, "")
    with step("this voter's own records, in an etcd of one voter"):
        made = client.call("POST", "/v1/cluster/recover")
    _tell(client, made, output, "goes on alone, with its own records")


def _agent(socket: str, config_file: str) -> Client:
    """Return the client of this host's agent, which is started unless one runs: it may wait for its store."""
    require_root()
    client = Client(socket)
    with step("agent"):
        ensure_answer(client, config_file, 0)
    return client


def _tell(client: Client, made: dict[str, Any], output: Format, what: str) -> None:
    with step("the agent has its store again"):
        _await_store(client, made["started_after"])
    before, again = made["before"], [one["name"] for one in made["join_again"]]
    join = f"linkspan cluster join {made['token']}"
    if output is Format.JSON:
        kept = ("cluster", "host", "store", "before", "token", "join_again", "departed")
        as_json({name: made.get(name, []) for name in kept} | {"join": join})  # a running agent may be older
        return
    print(f"host {made['host']} is the voter of cluster {made['cluster']}, and {what}")
    if before:
        print(f"the data of before are in {before}")
    if departed := [one["name"] for one in made.get("departed", ())]:  # a running agent may be older
        print(f"these hosts were forgotten or removed since then, and stay outside: {', '.join(departed)}")
    if again:
        print(f"these hosts must join again, and keep their containers: {', '.join(again)}\n\n  {join}")
    else:
        print("the other hosts follow by themselves; tokens of before let nobody in any more")


def _await_store(client: Client, started_after: float) -> None:
    """Wait until the store answers the agent, after its restart if it restarts. Raises Unavailable.

    Records may be lost for longer: hosts that must join again put theirs back then.
    """
    deadline, said = time.monotonic() + PATIENCE, "its store does not answer"
    while time.monotonic() < deadline:
        try:
            status = client.call("GET", "/v1/status")
            store, began = status["store"], status["agent"]["started"]
            if began > started_after and store["state"] != "away" and not status.get("waiting"):
                return
            said = store["problem"] or said
        except LinkspanError as error:
            said = error.message
        time.sleep(AGAIN)
    raise Unavailable(f"the agent has no store after {PATIENCE:.0f} s: {said}", "linkspan status")
