"""`linkspan lab`: a cluster of virtual hosts on this machine."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from linkspan.backends import CROSSING
from linkspan.cli.address import NOT_WELL
from linkspan.cli.output import Format, Output, as_json, details, joined, pairs, split, step, table
from linkspan.lab import (
    agents,
    build,
    containers,
    controllers,
    faults,
    inside,
    matrix,
    record,
    rootless,
    routers,
    switches,
    topology,
)
from linkspan.lab.record import Controller, Host, Lab, Router, Switch
from linkspan.lab.underlay import CABLE

app = typer.Typer(no_args_is_help=True)


@app.callback()
def labs(context: typer.Context) -> None:
    """Run a cluster of virtual hosts on this machine, to try and to break things."""
    if not context.resilient_parsing and not {"-h", "--help"} & set(sys.argv):
        rootless.enter(make=context.invoked_subcommand == "up")


Name = Annotated[str, typer.Option("--lab", envvar=inside.LAB, metavar="NAME", help="Which lab.")]
HostName = Annotated[str, typer.Argument(metavar="HOST", help="A host: h1.")]
Place = Annotated[str, typer.Argument(metavar="NAME", help="A host, a container or a router: h1, c1, r1.")]
Breakable = Annotated[
    str, typer.Argument(metavar="HOST", help="A host, router, switch or controller: h1, r1, sw1, ctl1.")
]
DEFAULT = "lab"

HostCount = Annotated[int, typer.Option(metavar="N", help="How many hosts.")]
BackendName = Annotated[
    str,
    typer.Option(
        metavar="B", help=f"Backend of network demo: {', '.join(CROSSING)}; bridge: hosts that share nothing."
    ),
]
Segments = Annotated[int, typer.Option(metavar="N", help="Underlay segments, joined by a router.")]
BackendOptions = Annotated[
    list[str], typer.Option("--opt", metavar="KEY=VALUE", help="A backend's option: direct=true.")
]
Store = Annotated[str, typer.Option(metavar="sqlite|etcd", help="The hosts' store.")]
StoreMembers = Annotated[int, typer.Option(metavar="1|3|5", help="Members of --store etcd.")]
Containers = Annotated[int, typer.Option(metavar="N", help="Containers on each host.")]
Underlay = Annotated[str, typer.Option(metavar="v4|v6|dual", help="The hosts' own addresses.")]
Mtu = Annotated[int, typer.Option(metavar="N", help="MTU of the underlay's links.")]
Routers = Annotated[
    str,
    typer.Option(
        "--routers", metavar="kernel|bird|frr", help="kernel: one for all segments; else BGP, one for each."
    ),
]
RoutersOfSegment = Annotated[int, typer.Option(metavar="N", help="Routers of each segment with BGP: 1 or 2.")]
Reflector = Annotated[bool, typer.Option("--reflector", help="A BGP route reflector on the segment, and no router.")]
Switches = Annotated[
    int,
    typer.Option(
        "--switches", metavar="1|3", help="OpenFlow switches for --backend sdn: one, or a spine and two leaves."
    ),
]
Controllers = Annotated[
    int,
    typer.Option("--controllers", metavar="N", help="Controllers for --backend sdn, 1 to 3: one is active."),
]
Nat = Annotated[
    list[str], typer.Option(metavar="HOST", help="Hosts, each behind a NAT that lets nobody in: h2,h3.")
]
Bare = Annotated[
    bool, typer.Option("--bare", help="Hosts with nothing but the program, to try `cluster init` and `join`.")
]


@app.command()
def up(
    hosts: HostCount = 3,
    backend: BackendName = "vxlan",
    segments: Segments = 1,
    opt: BackendOptions = [],  # noqa: B006 - typer's way
    store: Store = "sqlite",
    store_members: StoreMembers = 1,
    containers_per_host: Containers = 1,
    underlay: Underlay = "v4",
    mtu: Mtu = 1500,
    routers_: Routers = topology.KERNEL,
    routers_per_segment: RoutersOfSegment = 1,
    reflector: Reflector = False,
    switches_: Switches = 1,
    controllers_: Controllers = 1,
    nat: Nat = [],  # noqa: B006 - typer's way
    bare: Bare = False,
    lab: Name = DEFAULT,
    output: Output = Format.TABLE,
) -> None:
    """Make a lab: hosts with agents, a network, and containers that reach each other."""
    wishes = topology.Wishes(
        lab=lab,
        hosts=hosts,
        backend=backend,
        segments=segments,
        options=pairs(split(opt), "--opt"),
        store=store,
        store_members=store_members,
        containers_per_host=containers_per_host,
        underlay=underlay,
        mtu=mtu,
        routers=routers_,
        routers_per_segment=routers_per_segment,
        reflector=reflector,
        switches=switches_,
        controllers=controllers_,
        nat=tuple(split(nat)),
        bare=bare,
    )
    _show(_built(topology.planned(wishes)), output)


def _built(made: Lab) -> Lab:
    """Build a lab and return it once its containers reach each other."""
    try:
        with record.locked(made.name):
            build.up(made, step)
    finally:
        if not record.names():
            rootless.finish()
    if not made.bare:
        with step("containers reach each other"):
            silent = matrix.awaited(made)
            if silent:
                raise matrix.sentence(silent).within(f"lab {made.name} is up, but has problems")
    return made


@app.command()
def down(lab: Name = DEFAULT, output: Output = Format.TABLE) -> None:
    """Remove a lab in any state; succeed if there is none."""
    gone = False
    if record.there(lab):
        with record.locked(lab):
            gone = build.down(lab)
    if not record.names():
        rootless.finish()
    if output is Format.JSON:
        as_json({"down": gone})
    else:
        print(f"lab {lab} is gone" if gone else f"there is no lab {lab}")


@app.command("list")
def list_(output: Output = Format.TABLE) -> None:
    """List the labs."""
    found = [_summary(record.load(name)) for name in record.names()]
    if output is Format.JSON:
        as_json(found)
        return
    rows = [tuple(str(value) for value in one.values()) for one in found]
    columns = ("name", "state", "hosts", "containers", "backend", "store", "segments")
    table(columns, rows, "there is no lab; `linkspan lab up` makes one")


def _summary(lab: Lab) -> dict[str, object]:
    return {
        "name": lab.name,
        "state": "up" if lab.complete else "half made",
        "hosts": len(lab.hosts),
        "containers": len(lab.containers),
        "backend": lab.backend,
        "store": lab.store,
        "segments": lab.segments,
    }


@app.command()
def show(lab: Name = DEFAULT, output: Output = Format.TABLE) -> None:
    """Show a lab: its hosts, its containers, and what is broken."""
    _show(record.load(lab), output)


def _described(lab: Lab) -> dict[str, Any]:
    hosts = [
        {
            "name": host.name,
            "namespace": host.namespace,
            "underlay": {"ifname": CABLE, "addresses": host.addresses, "segment": host.segment},
            "socket": lab.socket(host.name),
            "agent": _life(lab, agents.alive(lab, host)),
            "broken": host.broken,
        }
        for host in lab.hosts
    ]
    places = [
        {"name": c.name, "host": c.host, "namespace": c.namespace, "addresses": c.addresses}
        for c in lab.containers
    ]
    speakers = [
        {
            "name": router.name,
            "namespace": router.namespace,
            "software": router.software,
            "as": router.asn,
            "segment": router.segment,
            "addresses": router.addresses,
            "alive": None if lab.hidden else routers.alive(lab, router),
            "broken": router.broken,
        }
        for router in lab.routers
    ]
    network = {"name": lab.network, "backend": lab.backend, "pools": lab.pools, "options": lab.options}
    return {
        "lab": lab.name,
        "hosts": hosts,
        "routers": speakers,
        "switches": [
            {"name": one.name, "address": switches.address(lab, one), "broken": one.broken} for one in lab.switches
        ],
        "controllers": [
            {
                "name": one.name,
                "socket": controllers.socket(lab, one),
                "alive": None if lab.hidden else bool(controllers.pids(lab, one)),
                "broken": one.broken,
            }
            for one in lab.controllers
        ],
        "containers": places,
        "network": network,
        "store": lab.store,
        "segments": lab.segments,
        "mtu": lab.mtu,
        "folder": str(lab.folder),
        "complete": lab.complete,
    }


def _life(lab: Lab, alive: bool | None) -> str:
    """Return whether a process is alive, in a word; unknown to a user who may not see it."""
    return "unknown: permission denied" if lab.hidden or alive is None else "alive" if alive else "dead"


def _show(lab: Lab, output: Format) -> None:
    found = _described(lab)
    if output is Format.JSON:
        as_json(found)
        return
    details(
        [
            ("lab", lab.name if lab.complete else f"{lab.name} (half made)"),
            ("network", "the hosts are bare" if lab.bare else f"{lab.network}: {lab.backend}, {joined(lab.pools)}"),
            ("store", "each host its own" if lab.alone or lab.bare else lab.store),
            ("folder", lab.folder),
        ]
    )
    print()
    hosts = [
        (
            host["name"],
            host["namespace"],
            f"{CABLE} {joined(host['underlay']['addresses'])}",
            host["agent"],
            joined(host["broken"]),
            host["socket"],
        )
        for host in found["hosts"]
    ]
    table(("host", "namespace", "underlay", "agent", "broken", "socket"), hosts, "no host")
    if found["routers"]:
        print()
        speakers = [
            (
                one["name"],
                one["namespace"],
                f"{CABLE} {joined(one['addresses'])}",
                one["as"],
                f"{one['software']} {_life(lab, one['alive'])}",
                joined(one["broken"]),
            )
            for one in found["routers"]
        ]
        table(("router", "namespace", "underlay", "as", "software", "broken"), speakers, "")
    if found["switches"]:
        print()
        rows = [(one["name"], one["address"], joined(one["broken"])) for one in found["switches"]]
        table(("switch", "address", "broken"), rows, "")
        print()
        lives = [
            (one["name"], _life(lab, one["alive"]), one["socket"]) for one in found["controllers"]
        ]
        table(("controller", "process", "socket"), lives, "")
    print()
    places = [(c["name"], c["host"], c["namespace"], joined(c["addresses"])) for c in found["containers"]]
    table(("container", "host", "namespace", "addresses"), places, "no container: linkspan lab attach h1 c1")


@app.command(
    "exec",
    context_settings={"ignore_unknown_options": True},
    epilog="linkspan lab exec c1 -- ping 10.244.1.2",
)
def exec_(
    name: Place,
    command: Annotated[list[str], typer.Argument(metavar="CMD...", help="After --, the command.")],
    lab: Name = DEFAULT,
) -> None:
    """Run a command in a host, container or router; in a host, `linkspan` talks to its agent."""
    found = record.load(lab)
    found.require_own(f"run a command in {name}")
    inside.become(found, name, command)


@app.command()
def shell(name: Place, lab: Name = DEFAULT) -> None:
    """Open a shell in a host, container or router."""
    found = record.load(lab)
    found.require_own(f"open a shell in {name}")
    inside.shell(found, name)


@app.command()
def attach(
    host: HostName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The container's name: c9.")],
    network: Annotated[str, typer.Option(metavar="N", help="The network; default: the lab's own.")] = "",
    ip: Annotated[
        list[str], typer.Option(metavar="IP", help="Exactly this address; one for each family.")
    ] = [],  # noqa: B006 - typer's way
    ifname: Annotated[
        str, typer.Option(metavar="NAME", help="The interface's name; default: the next free ethN.")
    ] = "",
    label: Annotated[list[str], typer.Option(metavar="K=V", help="A label.")] = [],  # noqa: B006 - typer's way
    lab: Name = DEFAULT,
    output: Output = Format.TABLE,
) -> None:
    """Add a container to a host, or an interface to a container."""
    with record.locked(lab):
        found = record.load(lab)
        labels = pairs(label, "--label")
        endpoint = containers.add(found, host, name, network or found.network, split(ip), ifname, labels)
    if output is Format.JSON:
        as_json(endpoint)
    else:
        print(f"{name}: {endpoint['ifname']} on {host}, address {joined(endpoint['addresses'])}")


@app.command()
def detach(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A container: c1.")],
    lab: Name = DEFAULT,
    output: Output = Format.TABLE,
) -> None:
    """Remove a container."""
    with record.locked(lab):
        count = containers.remove(record.load(lab), name)
    if output is Format.JSON:
        as_json({"detached": count})
    else:
        print(f"{name} is gone")


@app.command("test")
def try_(lab: Name = DEFAULT, output: Output = Format.TABLE) -> None:
    """Test from every container and host to every container: ping, TCP, and the largest packet with DF."""
    found = record.load(lab)
    found.require_own("test")
    outcome = matrix.test(found)
    if output is Format.JSON:
        as_json(outcome)
    else:
        if outcome.failed:
            rows = [(f.source, f.target, f.what) for f in outcome.failed]
            table(("from", "to", "what"), rows, "")
            print()
        print(f"{outcome.ok} of {outcome.pairs} pairs are ok: ping, TCP, and full-sized packets with DF")
    if outcome.failed:
        raise typer.Exit(NOT_WELL)


@app.command("break")
def break_(
    host: Breakable,
    failure: Annotated[
        str,
        typer.Argument(
            metavar="FAILURE",
            help=f"{', '.join(faults.FAILURES)} or partition:HOST; of a router {' or '.join(routers.FAILURES)}; "
            f"of a switch {' or '.join(switches.FAILURES)}; of a controller {' or '.join(controllers.FAILURES)}.",
        ),
    ],
    lab: Name = DEFAULT,
    output: Output = Format.TABLE,
) -> None:
    """Cause a failure on a host, router, switch or controller."""
    with record.locked(lab):
        found = record.load(lab)
        place = found.breakable(host)
        match place:
            case Host():
                done = faults.do(found, place, failure)
            case Router():
                done = routers.do(found, place, failure)
            case Switch():
                done = switches.do(found, place, failure)
            case Controller():
                done = controllers.do(found, place, failure)
    _told(host, found, [done], output)


@app.command()
def mend(host: Breakable, lab: Name = DEFAULT, output: Output = Format.TABLE) -> None:
    """Undo a failure there."""
    with record.locked(lab):
        found = record.load(lab)
        place = found.breakable(host)
        match place:
            case Host():
                done = faults.mend(found, place)
            case Router():
                done = routers.mend(found, place)
            case Switch():
                done = switches.mend(found, place)
            case Controller():
                done = controllers.mend(found, place)
    _told(host, found, done or [f"nothing on {host} was broken"], output)


def _told(host: str, lab: Lab, done: list[str], output: Format) -> None:
    if output is Format.JSON:
        as_json({"host": host, "done": done, "broken": lab.breakable(host).broken})
    else:
        print("\n".join(done))
