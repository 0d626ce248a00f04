"""This host's id among the others: given by the settings, or made once and kept in the state folder.

Blocks and addresses are claimed under it, so a host becomes another one only where its operator says so. Where the
file with the id is lost, the snapshot or the host's own store tells it. Where they do not, an agent that shares a store
with others does not start: its containers' addresses would belong to a host that nobody runs any more.
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
from linkspan.store.replica import SNAPSHOT, remembered

FILE = "host-id"


def host_id(state_dir: Path, given: str, *, shared: bool) -> tuple[str, str]:
    """Return this host's id, and what an operator should be told of it ('': nothing); ``keep`` writes it down.

    ``shared`` tells whether the store is one for several hosts. Raises Unavailable, naming the file, where the id
    cannot be known.
    """
    last = remembered(state_dir / SNAPSHOT).host
    if given:
        another = last not in ("", given)
        return given, f"this host was {last} among the others, and is {given} from now on" if another else ""
    file = state_dir / FILE
    found, why = _read(file)
    known = last or found or _alone(state_dir)
    if known and known == found:
        return found, ""
    if known:
        return known, f"{file} {why or f'says {found}'}: this host goes on as {known}, which its own records tell"
    ran_before = why != "is missing" or (state_dir / WITNESS).exists()
    if ran_before and shared:
        raise Unavailable(
            f"{file} {why}, and nothing else in {state_dir} tells this host's id",
            f"write the id into it (echo ID > {file}), which `linkspan host list -o json` on another host shows; or "
            "make this a new host: `linkspan uninstall`, and start its agent again",
        )
    made = uuid.uuid4().hex[:16]
    return made, f"{file} {why}: this host is {made} from now on" if ran_before else ""


def _read(file: Path) -> tuple[str, str]:
    """Return the id in the file, or '' and why there is none."""
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
    """Write down the id that no settings give. Raises Unavailable, naming the file, where it cannot be kept."""
    file = state_dir / FILE
    if _read(file)[0] == id_:
        return
    try:
        durable_files.write(file, id_.encode() + b"\n", 0o600)
    except OSError as error:
        raise _unusable(file, error) from error


def _unusable(file: Path, error: OSError) -> Unavailable:
    return Unavailable(f"{file}: {reason(error)}", remedy(error, file, "this host's id is kept in that file"))


def _alone(state_dir: Path) -> str:
    """Return the id of the only host in the store that a host has for itself, '' where there is not just one."""
    hosts = own_hosts(state_dir)
    return hosts[0] if len(hosts) == 1 else ""

