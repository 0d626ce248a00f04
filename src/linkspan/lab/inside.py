"""User's commands in a host, container or router of a lab."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import NoReturn

from linkspan.core import config
from linkspan.core.errors import NotFound
from linkspan.kernel.io.durable_files import BOOT_ID
from linkspan.lab import controllers, credentials, processes, routers
from linkspan.lab.commands import entering
from linkspan.lab.record import Host, Lab, Router
from linkspan.lab.topology import ETCD_PORT, bare, etcd_address

LAB = "LINKSPAN_LAB"
"""Environment variable with the name of the lab, if --lab is not given."""


def environment(lab: Lab, name: str) -> dict[str, str]:
    """Return the environment in a host or container: `linkspan` is found, and talks to the host's agent.

    In a host, `etcdctl` talks to the lab's etcd, as a user with all rights there.

    In a router, `vtysh` or `birdc` talks to its daemons.
    """
    place = lab.place(name)
    if isinstance(place, Router):
        found = processes.environment(lab.folder, f"exec/{name}", **{LAB: lab.name})
        return found | {"PATH": f"{routers.folder(lab, place) / 'bin'}:{found['PATH']}"}
    host = lab.host(place.name if isinstance(place, Host) else place.host)
    more = {LAB: lab.name, "LINKSPAN_SOCKET": lab.socket(host.name)}
    if lab.bare:
        more[config.CONFIG] = str(lab.settings(host.name))
    # so that `ovs-ofctl dump-flows sw1` finds the lab's switch, and `linkspan controller` the first
    # controller
    if lab.controllers:
        first = next((one for one in lab.controllers if controllers.pids(lab, one)), lab.controllers[0])
        more |= {
            "LINKSPAN_CONTROLLER_SOCKET": controllers.socket(lab, first),
            "OVS_RUNDIR": str(lab.folder / "ovs"),
        }
    if lab.store == "etcd" and not lab.alone and isinstance(place, Host):  # never in a container
        text = bare(etcd_address(lab, host.segment))
        more |= credentials.environment(lab, f"[{text}]:{ETCD_PORT}" if ":" in text else f"{text}:{ETCD_PORT}")
    if host.boot_id:
        more[BOOT_ID] = host.boot_id
    return processes.environment(lab.folder, f"exec/{name}", **more)


def command(lab: Lab, name: str, argv: Sequence[str]) -> list[str]:
    """Return the command that runs ``argv`` in a host, container or router. Raises NotFound."""
    return [*entering(lab.place(name).namespace, name), *argv]


def become(lab: Lab, name: str, argv: Sequence[str]) -> NoReturn:
    """Run a command in this process's place. Raises NotFound if it does not exist."""
    env = environment(lab, name)
    if shutil.which(argv[0], path=env["PATH"]) is None:
        raise NotFound(f"command {argv[0]} is not found", "give its path, or install it")
    words = command(lab, name, argv)
    os.execvpe(words[0], words, env)  # noqa: S606 - no shell is meant


def shell(lab: Lab, name: str) -> NoReturn:
    """Become an interactive shell in a host or container, with its name in the prompt."""
    os.environ["PS1"] = f"[{lab.name}] {name}# "
    plain = ["bash", "--norc", "-i"] if shutil.which("bash") else ["sh", "-i"]
    become(lab, name, plain)
