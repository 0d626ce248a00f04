"""Backends, one file each: how packets cross between endpoints and between hosts. ``_ALL`` is the complete list.

The contract (``core/backend_contract``)
    A backend is pure: it returns states and does no I/O. Every backend has ``check``, ``completed``,
    ``claims``, ``network`` and ``endpoint``. A backend that crosses hosts also has ``announce`` (what peers
    must know), ``check_offer`` (what a record may say of that), ``peer``, and ``needs`` (what must pass on the
    underlay). Therefore `network create` refuses what cannot work, and `doctor --peers` tries any backend by
    its declaration. States that serve all networks together come from ``host``. They are a source of their own,
    because the sources of two networks could not change them together. ``host_phase`` says who applies them:
    ``agent/plans``, before the networks (a device on which they have addresses), or ``cluster/shared_states``,
    after the peers (a BGP speaker). The head of each backend describes a packet's walk, what a peer costs, and
    what was rejected.

    A backend says what is different from ``base`` (for routed containers and for tunnels from ``routed``). One in a
    package of its own has an entry point ``linkspan.backends``. A host without that package does not use the
    network's record, and `status` says why.

Facts
    Some states depend on the machine: does Docker drop FORWARD, does firewalld run, did the host forward before.
    Probes observe this into ``host_view.Facts``, so backends stay pure, and a change of facts is a new plan. Facts
    never follow from what linkspan itself did. The programs that may serve a kind of state are facts, too. The
    kind's declaration looks for them (``finds``), and a backend asks for one by its class.

Addresses
    A container's address has the length that its interface has: the pool's on a bridge, /32 and /128 if it is
    routed.

Migration
    ``migration`` is pure and describes the three steps, and ``cluster/migration_runner`` takes them. While a
    network migrates, its record has both ways. They are symmetrical: to go back means to swap them. The
    ``endpoints`` of a lease say by which ways its host receives. The ``generation`` of an offer says that the
    host sends to all peers by that way.

    - *A host sends by a way that the other one does not accept yet.* It cannot: routes of the new way appear only
      if both leases offer it, and a host offers it only after its states for receiving are applied.
    - *The old way goes while a host sends by it.* It goes only when every lease says so, and a silent host's lease
      does not.
    - *A late offer arrives after the turn, because its host was stopped during the write.* The write requires that
      the network's record has the revision that the offer was made for.
    - *A packet is too large for one of the ways.* Meanwhile containers' routes have the smaller MTU and their links
      the larger one, so nothing depends on which host is first. In a trial links were raised host by host. Early
      senders got "fragmentation needed" from late ones, and a container remembers that for ten minutes.
    - *An agent starts during a migration.* The store has everything. What agents know in memory (which peers are
      reached by which way) the new agent finds out again before it announces anything.
    - *Entries of peers are left without their device, and healing complains.* ``agent/plans`` first applies a
      network's new states, then the peers follow, then it drops what the network no longer needs.

Encryption
    ``core/seal`` keeps packets of an encrypted network from leaving in clear, for all backends that encrypt. Beside
    the pools' unreachable routes there is a chain after all translation, and a second chain before it drops what
    comes in clear. They exist only while *every* way of the network's record encrypts, so a migration seals at its
    end. Rules recognise a device that encrypts by its device group as well as its name, because another program may
    have made a device with that name. States on such a link wait until it is gone (``core/reconcile``).
"""

from __future__ import annotations

from linkspan.backends import bridge, host, host_gw, ipip, vxlan
from linkspan.backends.bgp import backend as bgp_backend
from linkspan.backends.ipsec import backend as ipsec_backend
from linkspan.backends.sdn import backend as sdn_backend
from linkspan.backends.wireguard import backend as wireguard_backend
from linkspan.core.backend_contract import Backend
from linkspan.core.errors import Conflict, Invalid
from linkspan.core.extensions import extended

_ALL: tuple[Backend, ...] = (
    bgp_backend.BACKEND,
    bridge.BACKEND,
    host.BACKEND,
    host_gw.BACKEND,
    ipip.BACKEND,
    ipsec_backend.BACKEND,
    sdn_backend.BACKEND,
    vxlan.BACKEND,
    wireguard_backend.BACKEND,
)
GROUP = "linkspan.backends"
"""Entry point group of backends in other packages; each entry point leads to one backend."""


def _with(known: dict[str, Backend], new: Backend) -> dict[str, Backend]:
    if new.name in known:
        raise Conflict(f"backend {new.name} exists already")
    return {**known, new.name: new}


BACKENDS, _LEFT_OUT = extended(GROUP, {backend.name: backend for backend in _ALL}, _with)
PROBLEMS = [f"the backend of package {name} is not loaded: {why}" for name, why in _LEFT_OUT.items()]
"""A sentence for each package whose backend could not be loaded."""
CROSSING = tuple(name for name, backend in BACKENDS.items() if backend.crosses_hosts)
"""Backends that cross hosts; a network can migrate between all of them."""


def backend(name: str) -> Backend:
    """Return the backend with this name. Raises Invalid with the known names."""
    try:
        return BACKENDS[name]
    except KeyError:
        raise Invalid(
            f"backend {name!r} does not exist on this host",
            f"choose one of {', '.join(BACKENDS)}, or install the package that has it",
        ) from None
