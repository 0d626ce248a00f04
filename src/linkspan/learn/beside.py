"""Checks beside a sandbox: with the machine's own programs, and unseen by what runs in it.

The sandbox is another person's: it may have put another `ping` over the machine's, may wait for the checks' processes
to stop or to change them, and may show them other files. So these commands are in a new mount namespace of the machine,
which has of the sandbox only its network, and its /run by the files' names. Those of a closed sandbox are in the user
namespace around it, in which it has no rights. They must run nothing that the sandbox has written. If one does, what is
covered and read-only there is locked for it, too, and it has only the capabilities that commands of the network need.
"""

from __future__ import annotations

import os

from linkspan.learn.sandbox import Sandbox, number_around

_PLACE = """set -e
mount -t tmpfs -o mode=755,size=1m tmpfs /run
for one in /proc/$0/root/run/*; do ln -s "$one" /run/; done
exec "$@"
"""
"""Gives the command a /run with the sandbox's files; ``$0`` is a process of the sandbox, whose root folder it is."""
_CAPABILITIES = "-all,+sys_admin,+net_admin,+net_raw,+dac_override,+sys_ptrace"
"""What commands beside a closed sandbox may do: enter namespaces, see and use the network, and read its files."""


class Beside(Sandbox):
    """A sandbox whose commands run beside it."""

    def __init__(self, box: Sandbox) -> None:
        super().__init__(box.init, around=box.around)

    def entering(self) -> list[str]:
        """Return the words before a command that runs beside the sandbox, in its network."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        seen = str(self.init)
        words = ["nsenter", f"--target={self.init}", *user, "--net", "--ipc", "setpriv", "--pdeathsig=KILL"]
        ends = ["--pid", "--fork", "--kill-child"]  # in the machine's PID namespace they would outlive this process
        if self.around:
            ends = []
            seen = number_around(self.init)
            outer = f"/proc/{self.around}/ns"
            words = ["nsenter", f"--user={outer}/user", "--preserve-credentials"]
            words += ["nsenter", f"--mount={outer}/mnt", f"--pid={outer}/pid"]
            words += [f"--net=/proc/{self.init}/ns/net", f"--ipc=/proc/{self.init}/ns/ipc"]
            words += ["setpriv", f"--bounding-set={_CAPABILITIES}"]
        return [*words, "unshare", "--mount", "--propagation=private", *ends, "sh", "-c", _PLACE, seen]

    def environment(self) -> dict[str, str]:
        """Return the environment of these commands: programs are the system's, and no settings are the sandbox's."""
        return super().environment() | {"PATH": self.path(), "HOME": "/"}
