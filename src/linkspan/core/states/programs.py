"""States of helper programs: their files, their processes, and what they leave behind."""

from __future__ import annotations

import msgspec

from linkspan.core.program import Program
from linkspan.core.states.host import Key, State

BIRD = "bird"
"""The BGP speaker's name as a Process."""
BGP_PORT = 179
"""RFC 4271 section 8.2.1."""
BGP_REFUSED = "ls_refused"
"""The speaker's attribute of a filtered route; its value is the rule that refused the route."""

SECRET = "{secret}"  # noqa: S105 - it is where one goes
"""The place of the secret in a Secret's text, in quotes."""


class IpipHelper(Program, frozen=True):
    """The start of the user-space IPIP endpoint's argv, without addresses: the kernel has no IPIP device.

    ``exits`` are the words by which it reads the table of networks that leave by another host, too. They are only in
    the argv of a helper that needs them: one that an agent before started does not know them.
    """

    argv: tuple[str, ...]
    exits: tuple[str, ...] = ()


class Bird(Program, frozen=True):
    """The BGP speaker's programs, the folder of its files, and who else listens at BGP's port: (address, name)."""

    speaker: str
    client: str
    folder: str
    listeners: tuple[tuple[str, str], ...] = ()


class Dnsmasq(msgspec.Struct, frozen=True):
    """The DNS server: its program, the user that it runs as, and the folder of its files."""

    program: str
    user: str
    folder: str


Zones = tuple[str, ...]
"""The networks whose names a server answers, in alphabetical order."""


class File(State, frozen=True, gc=False):
    """A file of ours with exactly this content; ``mode`` is its permission bits.

    The content of a ``volatile`` file is not remembered: it changes often, and nobody else writes there.
    """

    path: str
    content: bytes
    mode: int = 0o644
    volatile: bool = False

    @property
    def key(self) -> Key:
        return ("File", self.path)


class Secret(State, frozen=True, gc=False):
    """A file of ours with a secret, for root alone: ``text`` with SECRET replaced by the content of ``source``.

    The secret itself is in no state. ``current`` says that the file is as it would be written now.
    """

    path: str
    source: str
    text: str
    current: bool = True

    @property
    def key(self) -> Key:
        return ("Secret", self.path)


class LearntRoutes(State, frozen=True, gc=False):
    """The routes of the main table from our BGP speaker, known by their metric; only the speaker changes them.

    They outlive ``process`` by ``keep`` seconds. Afterwards they are ``stale``, and are swept.
    """

    metric: int
    process: str
    keep: int
    stale: bool = False

    @property
    def key(self) -> Key:
        return ("LearntRoutes", self.metric)


class Process(State, frozen=True, gc=False):
    """A helper program that runs, in a session of its own, and outlives the agent.

    ``files`` are the paths that it reads, of files or of whole folders. If one changed, ``reload`` is run
    once per batch (an argv; empty: the process is restarted), or with ``hup`` SIGHUP is sent. Another
    ``argv`` is a restart. ``again`` is appended to it at every start after the first one of a boot.
    """

    name: str
    argv: tuple[str, ...]
    reload: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    hup: bool = False

    @property
    def key(self) -> Key:
        return ("Process", self.name)
