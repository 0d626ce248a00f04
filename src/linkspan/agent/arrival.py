"""Arrival of this host in a cluster, at its agent's start: which cluster it may join, and what to warn of."""

from __future__ import annotations

from pathlib import Path

from linkspan.cluster.hosts import Hosts
from linkspan.core import namesakes
from linkspan.core.config import Config
from linkspan.core.store_url import told
from linkspan.kernel.io.durable_files import boot_id
from linkspan.store.factory import own_cluster
from linkspan.store.replica import Replica
from linkspan.store.snapshot import SNAPSHOT, remembered


def known_cluster(config: Config) -> tuple[str, str]:
    """Return the id of this host's cluster ("": it may join any) and a message for the operator.

    A host may join any cluster if it is new, or if it was alone, has no network, and now gets a store.
    The store of a host that is alone is a cluster of its own. A cluster without a network has nothing to
    lose. If the snapshot's records are damaged, the cluster may have networks.
    """
    state_dir = Path(config.state_dir)
    known = remembered(state_dir / SNAPSHOT)
    alone = bool(known.cluster) and known.cluster == own_cluster(state_dir)
    if not config.store or not alone or known.networks:
        return known.cluster, ""
    return "", "this host was alone and had no network: it joins the cluster of its store"


def first_in_store(config: Config, replica: Replica, hosts: Hosts) -> str:
    """Return the message that a new host is the first one in its store, '' if it is not or nobody knows.

    A URL without its prefix leads to an empty store.
    """
    if not config.store or not replica.listed or hosts.all():
        return ""
    return (
        f"this host is the first one in store {told(config.store)}, and starts a cluster there; if other hosts should "
        "be in it, compare the store's URL and its prefix with theirs"
    )


def namesake(hosts: Hosts, name: str) -> str:
    """Return the warning that another host has this host's name, '' if none has."""
    if not (ids := namesakes.shared(hosts.names()).get(name)):
        return ""
    return f"{namesakes.told(name, ids)}, of which {hosts.here.id} is this host's id; {namesakes.FIX}"


def instance(config: Config, name: str) -> str:
    """Return the id of this agent's installation in this boot; another agent with the same host id has another one.

    A copy of a machine's disk has the same name and the same folder, device and inode: only its boot is another one.
    """
    folder = Path(config.state_dir).stat()
    return f"{name}:{folder.st_dev}:{folder.st_ino}:{boot_id()}"
