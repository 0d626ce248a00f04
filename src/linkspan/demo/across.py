"""Tour across hosts: three virtual hosts in a lab, and their containers with each backend in turn."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

from linkspan.agent.warnings import KERNEL
from linkspan.api.client import Client
from linkspan.backends import BACKENDS, CROSSING
from linkspan.core.cells import cells, padded
from linkspan.core.errors import LinkspanError
from linkspan.demo import sniffer
from linkspan.demo.language import Words
from linkspan.demo.screen import Screen, headline, throughput
from linkspan.lab import agents, build, controllers, faults, inside, matrix, record, switches, topology
from linkspan.lab.record import Lab
from linkspan.lab.topology import bare

HIDDEN = ("nft ", "sysctl ")
"""Commands that are counted and not shown, like those for names: a host without other hosts has them too."""
FAILURE = {"vxlan": "fdb-flush", "bgp": "helper-kill", "sdn": "flows-flush"}
"""The failure to show; for other backends the routes are flushed."""


def run(backend: str, step: build.Step, words: Words, *, keep: bool) -> bool:
    """Show the tour of one backend, ``step`` by step, in a language; return whether everything passed.

    Raises LinkspanError.
    """
    name = f"demo-{backend}"
    build.down(name)  # left by a tour that was kept, or interrupted
    screen = Screen(words)
    done = False
    headline(words(BACKENDS[backend].summary or backend))
    try:
        lab = _made(screen, name, backend, step)
        _commands(screen, lab)
        _matrix(screen, lab)
        _path(screen, lab)
        _throughput(screen, lab)
        _mended(screen, lab, FAILURE.get(backend, "routes-flush"))
        if BACKENDS[backend].encrypts:
            sniffer.show(screen, lab)
        done = True
    finally:
        if not (keep and done):
            build.down(name)
    if keep:
        _hints(screen, lab)
    for text in screen.failed:
        print(words("failed: {text}", text=text), file=sys.stderr)
    return not screen.failed


def clear() -> None:
    """Remove what tours have left."""
    for backend in CROSSING:
        build.down(f"demo-{backend}")


def _made(screen: Screen, name: str, backend: str, step: build.Step) -> Lab:
    screen.title(screen.words("1. Three hosts on one switch, each with an agent and a container"))
    screen.say(f"  [cyan]$[/cyan] linkspan lab up --lab {name} --backend {backend}")
    lab = topology.planned(topology.Wishes(lab=name, backend=backend))
    with record.locked(name):
        build.up(lab, step)
    silent = matrix.awaited(lab)
    if silent:
        raise matrix.sentence(silent)
    for host in lab.hosts:
        inner = ", ".join(f"{c.name} {bare(c.addresses[0])}" for c in lab.containers if c.host == host.name)
        screen.say(f"    {host.name}  {bare(host.addresses[0])}: {inner}")
    return lab


def _commands(screen: Screen, lab: Lab) -> None:
    """Show as commands what one host has to reach the others; count what it has for its own containers."""
    words = screen.words
    screen.title(words("2. What h1 has to reach the others, as commands that would make it by hand"))
    screen.say("  [cyan]$[/cyan] linkspan plan")
    lines: list[dict[str, Any]] = agents.client(lab, "h1").call("GET", "/v1/plan?network=")
    shown = [
        line
        for line in lines
        if not line["command"].startswith(HIDDEN)
        and "container" not in line["why"]
        and "for names in" not in line["why"]
    ]
    why = ""
    for line in shown:
        if line["why"] != why:
            why = line["why"]
            screen.output([f"# {why}"])
        screen.output(line["command"].splitlines())
    others = len(lines) - len(shown)
    screen.say("    " + words("(and {number} for rules, settings, names and its own container)", number=others))
    all_present = all(line["present"] for line in lines)
    screen.expect(all_present, words("all {number} objects are in the kernel", number=len(lines)))
    if lab.backend == "bgp":  # their routes are in no plan: the hosts exchange them
        for argv in (["linkspan", "bgp", "peers"], ["ip", "route", "show", "proto", "bird"]):
            screen.shown(" ".join(argv), inside.command(lab, "h1", argv), inside.environment(lab, "h1"))
    if lab.switches:  # the hosts have almost nothing: this carries the packets
        for argv in (["linkspan", "controller", "status"], ["linkspan", "controller", "flows"]):
            screen.shown(" ".join(argv), inside.command(lab, "h1", argv), inside.environment(lab, "h1"))


def _matrix(screen: Screen, lab: Lab) -> None:
    words = screen.words
    title = words("3. Everybody reaches everybody: ping, TCP, and full-sized packets that may not be fragmented")
    screen.title(title)
    screen.say(f"  [cyan]$[/cyan] linkspan lab test --lab {lab.name}")
    outcome = matrix.test(lab)
    failed = {(one.source, one.target) for one in outcome.failed}
    names = [container.name for container in lab.containers]
    screen.say(f"    {'':5}" + "".join(f"{name:>5}" for name in names))
    tried = {(source.name, target.name) for source, target in matrix.pairs(lab)}
    for place in lab.places:
        cells = (
            "·" if (place.name, n) not in tried else "✗" if (place.name, n) in failed else "✓" for n in names
        )
        screen.say(f"    {place.name:5}" + "".join(f"{cell:>5}" for cell in cells))
    text = words("{ok} of {pairs} pairs are ok", ok=outcome.ok, pairs=outcome.pairs)
    screen.expect(not outcome.failed, text)


def _path(screen: Screen, lab: Lab) -> None:
    screen.title(screen.words("4. A packet's path from c1 to c2, by the kernels' own answers"))
    argv = ["linkspan", "trace", "c1", "c2"]
    try:
        screen.shown(" ".join(argv), inside.command(lab, "h1", argv), inside.environment(lab, "h1"))
    except LinkspanError as error:
        screen.expect(condition=False, text=error.message)


def _throughput(screen: Screen, lab: Lab) -> None:
    words = screen.words
    screen.title(words("5. Throughput, against the bare underlay"))
    if shutil.which("iperf3") is None:
        screen.say("  " + words("(iperf3 is not installed: no throughput)"))
        return
    h1, h2 = lab.host("h1"), lab.host("h2")
    c1, c2 = lab.container("c1"), lab.container("c2")
    under = throughput(h1.namespace, h2.namespace, bare(h2.addresses[0]))
    over = throughput(c1.namespace, c2.namespace, bare(c2.addresses[0]))
    bare_words = words("from h1 to h2, the bare underlay")
    over_words = words("from c1 to c2, with {backend}", backend=lab.backend)
    room = max(map(cells, (bare_words, over_words))) + 2
    screen.say(f"    {padded(bare_words, room)}{under / 1e9:6.1f} Gbit/s")
    path = agents.client(lab, "h1").call("GET", f"/v1/networks/{lab.network}")["data_path"]
    part = words("{part:.0%} of it", part=over / under)
    screen.expect(over > 0, f"{padded(over_words, room - 2)}{over / 1e9:6.1f} Gbit/s, {part}")
    if why := slower(path, words, switched=bool(lab.switches)):
        screen.say(f"    {why}")


def slower(path: str, words: Words, *, switched: bool) -> str:
    """Return why a figure is no measure of a backend: a program does the kernel's work. '' if the kernel does."""
    if switched:
        return words("in user space: the lab's switches are programs, where a rack's are hardware")
    return "" if path == KERNEL else words("{path}; a kernel that has it is many times faster", path=path)


def _mended(screen: Screen, lab: Lab, failure: str) -> None:
    words = screen.words
    screen.title(words("6. Somebody breaks it; linkspan repairs it within two seconds"))
    client, url = agents.client(lab, "h1"), "/v1/diff"
    if lab.switches:
        screen.say(f"  [cyan]$[/cyan] linkspan lab break sw1 {failure} --lab {lab.name}")
        screen.output([switches.do(lab, lab.switches[0], failure)])
        client, url = Client(controllers.socket(lab, lab.controllers[0])), "/v1/controller/diff"
    else:
        screen.say(f"  [cyan]$[/cyan] linkspan lab break h1 {failure} --lab {lab.name}")
        screen.output([faults.do(lab, lab.host("h1"), failure)])
    begun = time.monotonic()
    while (gone := time.monotonic() - begun) < 2 and any(client.call("GET", url).values()):
        time.sleep(0.02)
    screen.expect(gone < 2, words("everything is repaired {seconds:.2f} s later", seconds=gone))
    screen.expect(not matrix.test(lab).failed, words("and everybody reaches everybody"))


_LOOKS = {
    "bgp": ("bgp peers", "bgp routes"),
    "sdn": ("controller status", "controller flows", "controller plan --switch sw1", "controller diff"),
    "wireguard": ("host rotate-keys",),
}
"""Other commands of `linkspan` on h1 that show the backend."""


def _hints(screen: Screen, lab: Lab) -> None:
    headline(screen.words("The lab is up. What to try"))
    failure = "link-down" if lab.switches else "partition:h2"
    for line in (
        f"export {inside.LAB}={lab.name}",
        "linkspan lab show",
        "linkspan lab shell h1",
        f"linkspan lab exec c1 -- ping {bare(lab.container('c2').addresses[0])}",
        "linkspan lab exec h1 -- linkspan plan",
        "linkspan lab exec h1 -- linkspan trace c1 c3",
        *(f"linkspan lab exec h1 -- linkspan {words}" for words in _LOOKS.get(lab.backend, ())),
        f"linkspan lab break h1 {failure}; linkspan lab test; linkspan lab mend h1",
        "linkspan lab down",
    ):
        print(f"  {line}")
