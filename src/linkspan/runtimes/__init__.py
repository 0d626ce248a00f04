"""Container runtimes: how CNI, Docker and Podman call the agent, and what linkspan puts on a machine for each.

One place
    A runtime is declared once: ``RUNTIME`` in its file, or in the module ``runtime`` of its folder (``base`` has the
    defaults). ``runtimes`` finds the declarations. The API takes the paths and sockets from there, `install` and
    `uninstall` the files, `network create` the names for --expose, and `doctor` the checks. Ten other files name a
    runtime, each for a reason that `tests/unit/runtimes/test_one_place.py` has.

How they call
    CNI and Podman execute a plugin for each container (``shim/``). It carries the call to ``cni/cni_verbs`` and
    ``podman/podman_service``. The call is one HTTP/1.0 POST: a block of ``KEY=VALUE`` that ends with zero bytes, so
    nothing has to be escaped, and then the plugin's stdin. The container's namespace is the number of a descriptor,
    which the agent opens at /proc/PID/fd/N, because the runtime's path may lead nowhere in the agent's mount
    namespace. The CNI plugin is a C program (its Python twin replaces it where there was no compiler). Podman's
    plugin exists in Python only: the C program is as long as it may be, and Podman itself takes a hundred times as
    long as Python's start.

    Docker's engine calls the agent at a socket of its own (``docker/docker_driver``). It takes the container's
    end of the veth pair from the host's namespace (``Endpoint.delivered``) and configures it. It knows neither
    the namespace nor the container's name, so the agent looks for both afterwards (``endpoints/delivery``). The
    engine's events report a `docker rename`. If the engine asks for a pool before it says for which network, the
    pool gets a gateway of its own. The engine names this gateway again together with the network
    (``docker/docker_pools``).

    Exposed networks are files for CNI and Podman. For Docker a task creates them through the engine's
    API and compares them again and again (``docker/docker_networks``).

JSON from Go
    All three engines are written in Go, which writes null for each list, map and pointer that was not set. So
    ``go_json`` drops null before a call is parsed. There is one exception, the list of valid attachments in CNI's
    GC: null is Go's empty list there, and a missing list is none. A null inside that list is an error, because GC
    removes what is not in the list and nobody knows which attachment was meant.

CNI chains
    A CNI plugin does not learn which plugins come after it. A later plugin (``tuning``) may set another MAC, and
    the guard would drop all packets with it. So the agent listens in the container's namespace for ten seconds
    after each ADD and adopts MAC and MTU, except a MAC that belongs to another endpoint of the network
    (``endpoints/tuning``). A CHECK carries the chain's own result, and the agent compares the machine with that.

What engines do and no specification says
    - containerd's CRI (go-cni) writes a runtimeConfig with Go's names (``HostPort``, ``IngressRate``). ``cni/cni_conf``
      reads them like the convention's names.
    - Debian's containerd looks for the plugins of pods in /usr/lib/cni only. So `install cni` also puts the plugin
      there.
    - Kubernetes has no field for a pod's address, so annotations ask for one.
    - Podman tells a network driver no labels. The agent reads them from Podman's database (``podman/podman_labels``).
    - A claim for an exact address carries the name that the runtime used first; for Docker this is an endpoint's
      id. So the agent looks up the holder among the endpoints of all hosts (``EndpointRecords.holder``) to name the
      container.
"""

from __future__ import annotations

import functools
import importlib.util
import pkgutil
from collections.abc import Iterable, Mapping

from linkspan.core.config import Config
from linkspan.core.errors import Invalid
from linkspan.core.model import Network
from linkspan.core.states.programs import File
from linkspan.diagnose.doctor.checks import Checks
from linkspan.runtimes.base import BaseRuntime


@functools.cache
def runtimes() -> Mapping[str, BaseRuntime]:
    """Return all runtimes by name: ``RUNTIME`` of each file here, or of the module ``runtime`` of a folder."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        name = f"{__name__}.{module.name}" + (".runtime" if module.ispkg else "")
        if module.ispkg and importlib.util.find_spec(name) is None:  # what several runtimes share
            continue
        if (runtime := getattr(importlib.import_module(name), "RUNTIME", None)) is not None:
            found[runtime.name] = runtime
    return found


def paths() -> frozenset[str]:
    """Return the paths on the agent's socket to which plugins post."""
    return frozenset(runtime.path for runtime in runtimes().values() if runtime.path)


def checks() -> Checks:
    """Return the checks of `doctor` for all runtimes."""
    return tuple(check for runtime in runtimes().values() for check in runtime.checks)


def check_exposure(network: Network) -> None:
    """Raise Invalid if the network cannot be exposed to the runtimes that it names."""
    known = runtimes()
    for name in network.expose:
        if name not in known:
            raise Invalid(f"network {network.name}: runtime {name!r} is unknown", f"give one of {', '.join(known)}")
        known[name].check(network)


def exposure_problem(network: Network) -> str:
    """Return why a runtime of this host does not have a network that is exposed to it, "" if each has it."""
    unknown = [name for name in network.expose if name not in runtimes()]
    return f"not exposed on this host, whose linkspan knows no runtime {', '.join(unknown)}" if unknown else ""


def exposure_files(network: Network, config: Config) -> Iterable[File]:
    """Return the files that expose a network on this host."""
    for name, runtime in runtimes().items():
        if name in network.expose:
            yield from runtime.exposing(network, config)
