"""Host id: set by the operator, or made once and kept in the state folder.

A host claims its blocks and addresses under this id, so it gets another id only if its operator says so. If
the file with the id is lost, the id comes from the snapshot or from the host's own store. If neither has it,
an agent that shares a store with others does not start: its containers' addresses would belong to a host that
nobody runs.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.model import checked_name
from linkspan.core.remedies import reason, remedy
from linkspan.endpoints.journal import WITNESS
from linkspan.kernel.io import durable_files
from linkspan.store.factory import own_hosts
from linkspan.store.snapshot import SNAPSHOT, remembered

FILE = "host-id"


def host_id(state_dir: Path, given: str, *, shared: bool) -> tuple[str, str]:
    """Return this host's id, and a message for the operator ('': none); ``keep`` writes the id down.

    ``shared``: the store is for several hosts. Raises Unavailable with the file's name if the id cannot be
    known.
    """
    last = remembered(state_dir / SNAPSHOT).host
    if given:
        another = last not in ("", given)
        return given, f"this host's id was {last} in the cluster, and is {given} from now on" if another else ""
    file = state_dir / FILE
    found, why = _read(file)
    known = last or found or _alone(state_dir)
    if known and known == found:
        return found, ""
    if known:
        return known, f"{file} {why or f'says {found}'}: this host keeps the id {known}, which its own records have"
    ran_before = why != "is missing" or (state_dir / WITNESS).exists()
    if ran_before and shared:
        raise Unavailable(
            f"{file} {why}, and nothing else in {state_dir} has this host's id",
            f"write the id into it (echo ID > {file}), which `linkspan host list -o json` on another host shows; or "
            "make this a new host: `linkspan uninstall`, then start its agent again",
        )
    made = uuid.uuid4().hex[:16]
    return made, f"{file} {why}: this host's id is {made} from now on" if ran_before else ""


def _read(file: Path) -> tuple[str, str]:
    """Return the id in the file, or '' and why the file has none."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return "", "is missing"
    except OSError as error:
        raise _unusable(file, error) from error
    except UnicodeDecodeError:
        return "", "is damaged"
    if not text:
        return "", "is empty"
    try:
        return checked_name(text, "host id"), ""
    except Invalid:
        return "", "is damaged"


def keep(state_dir: Path, id_: str) -> None:
    """Write down the id, unless the settings give it. Raises Unavailable with the file's name."""
    file = state_dir / FILE
    if _read(file)[0] == id_:
        return
    try:
        durable_files.write(file, id_.encode() + b"\n", 0o600)
    except OSError as error:
        raise _unusable(file, error) from error


def _unusable(file: Path, error: OSError) -> Unavailable:
    return Unavailable(f"{file}: {reason(error)}", remedy(error, file, "that file keeps this host's id"))


def _alone(state_dir: Path) -> str:
    """Return the id of the only host in the host's own store, '' if the store does not have exactly one."""
    hosts = own_hosts(state_dir)
    return hosts[0] if len(hosts) == 1 else ""

