"""`linkspan cluster init`, `join`, `leave`, `token`, `members`, `promote`...: a cluster on linkspan's own etcd."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from typing import Annotated, Any

import typer

from linkspan.api.client import Client, part
from linkspan.cli.agent_start import ensure_agent, ensure_answer
from linkspan.cli.install import require_root
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, ago, as_json, step, table
from linkspan.core import config, namesakes
from linkspan.core.errors import Invalid, LinkspanError, Unavailable

PATIENCE = 90.0
"""Seconds for an agent's restart with its new store."""
WAITS = 10.0
"""Seconds for an agent that waits for its store: it may have begun just now."""
PROMOTION = 600.0
"""Seconds for a promotion: a minute of health, and the time in which a slow host may get the records."""
AGAIN = 0.1
"""Seconds between two looks."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

ConfigFile = Annotated[
    str, typer.Option("--config", metavar="FILE", envvar=config.CONFIG, help="The agent's config file, to start one.")
]
tokens = typer.Typer(no_args_is_help=True, help="Join tokens: what lets a host into the cluster.")


def init(
    advertise: Annotated[
        str, typer.Option(metavar="ADDR", help="Which of this host's addresses the other hosts reach.")
    ] = "",
    voters: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="How many run etcd; 0: one, 3 from 3 hosts on, 5 from 7 on."),
    ] = None,
    replace_after: Annotated[
        str, typer.Option(metavar="TIME", help="After how long another host replaces a dead voter: 10m by default.")
    ] = "",
    config_file: ConfigFile = "",
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Begin a cluster with this host: start etcd, move this host's records into it, and print the join command.

    Containers keep running. It may be repeated after a failure, and on a voter to change the two settings of voters.
    """
    require_root()
    waited = _seconds(replace_after, "--replace-after") if replace_after else None
    wish = {"advertise": advertise, "voters": voters, "replace_after": waited}
    client = Client(socket)
    with step("agent"):
        ensure_agent(client, config_file)
    with step("etcd, its certificates and users"):
        made = client.call("POST", "/v1/cluster/init", wish)
    with step("this host's records move into etcd"):
        _await_member(client, made, "voter")
    store = client.call("GET", "/v1/status")["store"]["url"]
    join = f"linkspan cluster join {made['token']}"
    if output is Format.JSON:
        as_json({"cluster": made["cluster"], "store": store, "join": join, "token": made["token"]})
        return
    print(f"host {made['host']} has begun cluster {made['cluster']}; on each other host, within 24 hours:\n")
    print(f"  {join}")


def join(
    word: Annotated[
        str, typer.Argument(metavar="TOKEN", help="From `cluster init` or `cluster token create`; -: from stdin.")
    ],
    config_file: ConfigFile = "",
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Join a cluster with this host. It may be repeated after a failure.

    Other users of this host see the arguments of commands while they run; with - the token is not among them.
    """
    require_root()
    token = sys.stdin.readline().strip() if word == "-" else word
    client = Client(socket)
    with step("agent"):
        ensure_answer(client, config_file, WAITS)
    with step("certificate and user"):
        made = client.call("POST", "/v1/cluster/join", {"token": token})
    with step("the agent starts with the cluster's records"):
        _await_member(client, made, "client")
    found = {"cluster": made["cluster"], "host": made["host"], "member": False}
    if output is Format.JSON:
        as_json(found)
        return
    print(f"host {made['host']} has joined cluster {made['cluster']}")


def _await_member(client: Client, made: dict[str, Any], role: str) -> None:
    """Wait until the agent has started again if it does, and is a member in this role. Raises Unavailable."""
    deadline, said = time.monotonic() + PATIENCE, "it has not registered"
    while time.monotonic() < deadline:
        try:
            if client.call("GET", "/v1/status")["agent"]["started"] > made["started_after"]:
                found = client.call("GET", "/v1/cluster/members")
                if any(one["host"] == made["host"] and one["role"] == role and one["version"] for one in found):
                    return
        except LinkspanError as error:  # the old agent, or none, or one that waits for etcd
            said = error.message
        time.sleep(AGAIN)
    raise Unavailable(f"the agent does not come back as a {role} after {PATIENCE:.0f} s: {said}", "linkspan status")


def members(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Show voters, which run etcd, learners, which become voters, and clients; and how many voters may be lost."""
    found = Client(socket).call("GET", "/v1/cluster/members")
    if output is Format.JSON:
        as_json(found)
        return
    words = {True: "yes", False: "no", None: "unknown"}
    names = {one["id"]: one["host"] for one in found if "id" in one}  # a running agent may be older
    rows = [
        (
            namesakes.called(names, one["id"]) if names else one["host"],
            one["role"],
            one["address"] or "-",
            one["version"] or "-",
            words[one["healthy"]],
        )
        for one in found
    ]
    table(("host", "role", "address", "version", "healthy"), rows, "no host")
    print()
    print(spare_voters(found))


def spare_voters(found: list[dict[str, Any]]) -> str:
    """Return how many voters may be lost before nothing can be changed."""
    voters = [one for one in found if one["role"] == "voter"]
    spare = sum(one["healthy"] for one in voters) - (len(voters) // 2 + 1)
    if spare > 0:
        return f"{spare} of {len(voters)} voters may be lost"
    if not spare:
        what = f"{len(voters)} voter" + "s" * (len(voters) != 1)
        return f"{what}, and none may be lost: then nothing could be changed, and what runs would continue"
    return (
        "too many voters do not answer: nothing can be changed until they return, and what runs continues; if they are "
        "lost for good, on one that is left: linkspan cluster recover (docs/recovery.md)"
    )


def forget(
    host: Annotated[str, typer.Argument(metavar="HOST", help="A host that joined, by its name or id.")],
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Shut a host out, on a voter: it reads and writes nothing any more, and its addresses are free."""
    found = Client(socket).call("POST", f"/v1/cluster/forgotten/{part('host', host)}")
    if output is Format.JSON:
        as_json(found)
        return
    rest = " and removed from all networks" if found["removed"] else ""
    print(f"host {found['forgotten']} is shut out of etcd{rest}; what runs there runs on: stop its agent, or uninstall")


def promote(
    host: Annotated[str, typer.Argument(metavar="HOST", help="A client, by its name or id.")],
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Make a client a voter, on a voter; wait until it is one.

    The cluster adds voters by itself. This names the next one, and lets a host be one whose token did not allow it.
    """
    client = Client(socket)
    with step("the cluster chooses the host"):
        found = client.call("POST", f"/v1/cluster/voters/{part('host', host)}")
    with step("all voters are healthy for a minute, then the host gets the records"):
        _await_role(client, found, "voter", PROMOTION)
    as_json(found) if output is Format.JSON else print(f"host {found['host']} is a voter")


def demote(
    host: Annotated[str, typer.Argument(metavar="HOST", help="A voter, by its host's name or id.")],
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Make a voter a client, on a voter; the cluster does not choose it again until somebody promotes it.

    Refused if the others could not change anything without it.
    """
    client = Client(socket)
    found = client.call("DELETE", f"/v1/cluster/voters/{part('host', host)}")
    with step("the host ends its etcd"):
        _await_role(client, found, "client", PATIENCE)
    as_json(found) if output is Format.JSON else print(f"host {found['host']} is a client")


def _await_role(client: Client, made: dict[str, Any], role: str, seconds: float) -> None:
    """Wait until a host, of which id and name are given, has a role. Raises Unavailable."""
    host, id_ = made["host"], made["id"]
    deadline, said = time.monotonic() + seconds, "it has another role"
    while time.monotonic() < deadline:
        try:
            found = client.call("GET", "/v1/cluster/members")
            if any(one.get("id", id_) == id_ and one["host"] == host and one["role"] == role for one in found):
                return
        except LinkspanError as error:  # etcd elects a leader
            said = error.message
        time.sleep(AGAIN)
    hint = "linkspan cluster members; linkspan events shows what was tried"
    raise Unavailable(f"host {host} is no {role} after {seconds:.0f} s: {said}", hint)


def leave(
    force: Annotated[
        bool, typer.Option("--force", help="Detach what is left, and leave a cluster that does not answer, too.")
    ] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Leave the cluster with this host: it gives its addresses back, and is alone afterwards, as a new host.

    Refused while containers are in the cluster's networks, and on a voter without which nothing could be changed.
    It may be repeated after a failure.
    """
    client = Client(socket)
    with step("this host gives its addresses back"):
        made = client.call("POST", "/v1/cluster/leave", {"force": force})
    with step("the agent starts as a new host"):
        _await_alone(client, made)
    found = {name: made[name] for name in ("left", "host", "detached")}
    as_json(found) if output is Format.JSON else print(f"host {made['host']} has left cluster {made['left']}")


def _await_alone(client: Client, made: dict[str, Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(LinkspanError):
            told = client.call("GET", "/v1/status")
            if told["agent"]["started"] > made["started_after"] and not told["store"]["url"].startswith("etcd://"):
                return
        time.sleep(AGAIN)
    raise Unavailable(f"the agent does not come back after {PATIENCE:.0f} s", "linkspan status")


@tokens.command("create")
def create_token(
    ttl: Annotated[str, typer.Option(metavar="TIME", help="How long it is good for: 30m, 24h, 7d.")] = "24h",
    uses: Annotated[int, typer.Option(metavar="N", min=0, help="How many hosts may join with it; 0: any number.")] = 0,
    member: Annotated[bool, typer.Option("--member", help="These hosts may become voters.")] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Make a token, on a voter; its secret is shown only now."""
    wish = {"seconds": _seconds(ttl, "--ttl"), "uses": uses, "member": member}
    found = Client(socket).call("POST", "/v1/cluster/tokens", wish)
    if output is Format.JSON:
        as_json(found)
        return
    print(f"linkspan cluster join {found['token']}")


@tokens.command("list")
def list_tokens(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """List all tokens."""
    _tell(Client(socket).call("GET", "/v1/cluster/tokens"), output)


@tokens.command("show")
def show_token(
    id_: Annotated[str, typer.Argument(metavar="ID", help="A token's id, from `token list`.")],
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Show a token: all but its secret, which nobody keeps."""
    found = Client(socket).call("GET", f"/v1/cluster/tokens/{part('token', id_)}")
    as_json(found) if output is Format.JSON else _tell([found], output)


@tokens.command("revoke")
def revoke_token(
    id_: Annotated[str, typer.Argument(metavar="ID", help="A token's id, from `token list`.")],
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Let nobody join with a token any more; hosts that joined with it stay."""
    found = Client(socket).call("DELETE", f"/v1/cluster/tokens/{part('token', id_)}")
    as_json(found) if output is Format.JSON else print(f"token {found['id']} is revoked")


def _tell(found: list[dict[str, Any]], output: Format) -> None:
    if output is Format.JSON:
        as_json(found)
        return
    rows = [
        (
            one["id"],
            one["state"],
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["expires"])),
            f"{len(one['used'])} of {one['uses'] or 'any number'}",
            ago(one["created"]),
        )
        for one in found
    ]
    table(("id", "state", "good until", "hosts", "made"), rows, "no token")


def _seconds(text: str, option: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if not match:
        raise Invalid(f"{option} {text!r} is no time", "write it like 30m, 24h or 7d")
    return int(match[1]) * _SECONDS[match[2]]
