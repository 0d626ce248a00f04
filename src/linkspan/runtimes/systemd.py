"""systemd: the agent's unit, and a service's messages to it (sd_notify(3))."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from linkspan.core.errors import Invalid

UNIT_NAME = "linkspan.service"
UNITS = "etc/systemd/system"
"""Folder of the units that are not a distribution's, below the root (systemd.unit(5))."""

_UNIT = """\
[Unit]
Description=linkspan node agent: networks for containers
After=network-pre.target local-fs.target firewalld.service nftables.service
Before=containerd.service crio.service docker.service kubelet.service
Wants=network-pre.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} agent
Restart=always
RestartSec=1
RestartPreventExitStatus=2
TimeoutStartSec=120
WatchdogSec=30
# Only the agent is ended: helper programs and the data path outlive it, and the next agent adopts them.
KillMode=process
TasksMax=infinity
LimitNOFILE=65536
# The shim queues DELs beside the socket while the agent is down, so the folder must outlive it.
RuntimeDirectory=linkspan
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes
StateDirectory=linkspan
StateDirectoryMode=0700

[Install]
WantedBy=multi-user.target
"""


_CONTROLLER_UNIT = """\
[Unit]
Description=linkspan controller: programs the underlay's switches and routers
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} controller
Restart=always
RestartSec=1
RestartPreventExitStatus=2
# What it has put into switches stays when it ends.
RuntimeDirectory=linkspan
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes
StateDirectory=linkspan-controller
StateDirectoryMode=0700

[Install]
WantedBy=multi-user.target
"""


def quoted(path: str) -> str:
    r"""Return a path as an executable in ExecStart (systemd.syntax(7): \, %, $ and white space)."""
    text = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if re.search(r"[\s;'\"]", text) else text


def unit(executable: str) -> str:
    """Return the text of the agent's unit; ``executable`` is the absolute path of ``linkspan``.

    Raises Invalid if the path is relative: systemd would search its own folders for it.
    """
    if not Path(executable).is_absolute() or "\n" in executable:
        raise Invalid(
            f"executable {executable!r} is not an absolute path", "give the output of `which linkspan`"
        )
    return _UNIT.format(command=quoted(executable))


def controller_unit(executable: str) -> str:
    """Return the text of the controller's unit; ``executable`` as for ``unit``."""
    unit(executable)  # refuses an invalid path
    return _CONTROLLER_UNIT.format(command=quoted(executable))


def notify(message: str) -> bool:
    """Send systemd ``READY=1``, ``WATCHDOG=1``, ``STOPPING=1`` or ``STATUS=...``; several by newlines.

    Returns whether somebody listens (NOTIFY_SOCKET is set, and accepts it): an agent started by hand has
    nobody to notify, and one whose manager is just restarting continues.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
        try:
            peer.connect(address)
            peer.send(message.encode())
        except OSError:
            return False
    return True


def runs() -> bool:
    """Return whether systemd manages this machine (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def restarts() -> bool:
    """Return whether systemd runs this process as a service, and so starts it again when it ends (Restart=always)."""
    return "NOTIFY_SOCKET" in os.environ and os.getppid() == 1


def sockets(name: str) -> list[socket.socket]:
    """Return the listening sockets of this name that systemd passed (sd_listen_fds_with_names(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    count = int(os.environ.get("LISTEN_FDS", "0"))
    first = 3  # SD_LISTEN_FDS_START
    return [socket.socket(fileno=first + n) for n in range(count) if names[n : n + 1] == [name]]


def watchdog_interval() -> float | None:
    """Return after how many seconds without ``WATCHDOG=1`` systemd ends this process; None if it does not.

    Send it at half of that (sd_watchdog_enabled(3)).
    """
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1_000_000
