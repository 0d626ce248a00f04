"""A router that runs FRR, reached by ssh: daemons of the test's own, in a namespace and folders of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from linkspan.lab import router_frr
from support.polling import Condition, explained, until

PORT = 2222
PROBE = "198.51.100.99/32 192.0.2.9"
PATIENCE = 60.0
NEEDS = ("vtysh", "sshd", "ssh", "ssh-keygen")


def missing() -> str:
    """Return what is not installed, '' where all is."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    frr = any(Path(folder, "staticd").exists() for folder in router_frr.FOLDERS)
    return next((name for name in NEEDS if shutil.which(name, path=path) is None), "" if frr else "frr")


class FrrRouter:
    """Zebra, staticd and sshd in a network namespace; ``address`` is how a controller reaches it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.address = f"ssh:root@127.0.0.1:{PORT}"
        self.ssh = {
            "IdentityFile": str(folder / "key"),
            "UserKnownHostsFile": str(folder / "known"),
            "StrictHostKeyChecking": "accept-new",
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Make the namespace with a link, and start the daemons."""
        self.namespace()
        self.daemons()
        self._sshd()

    def namespace(self, mac: str = "02:00:00:00:00:fe") -> None:
        """Make the namespace, which forwards, with a link whose other end is in it too."""
        for words in (
            f"netns add {self.name}",
            f"-n {self.name} link set lo up",
            f"-n {self.name} link add eth0 address {mac} type veth peer name eth1",
            f"-n {self.name} link set eth0 up",
            f"-n {self.name} link set eth1 up",
            f"-n {self.name} addr add 192.0.2.254/24 dev eth0",
            f"-n {self.name} addr add 2001:db8:1::fe/64 dev eth0 nodad",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        sysctl = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.send_redirects=0"]
        argv = ["ip", "netns", "exec", self.name, "sysctl", "-qw", *sysctl, "net.ipv4.conf.eth0.send_redirects=0"]
        subprocess.run(argv, check=True)
        argv = ["ip", "netns", "exec", self.name, "ethtool", "-K", "eth0", "tx", "off"]
        subprocess.run(argv, check=True, capture_output=True)

    def daemons(self) -> None:
        """Start FRR's daemons, with no route of anybody's."""
        for path in (self.folder / "run", self.folder / "etc", self.folder / "bin"):
            path.mkdir(exist_ok=True)
        for path in (self.folder / "run").iterdir():
            path.unlink()
        self.folder.chmod(0o755)
        shutil.chown(self.folder / "run", router_frr.USER, router_frr.USER)
        script = self.folder / "bin" / "vtysh"
        script.write_text(f'#!/bin/sh\nexec {shutil.which("vtysh")} --vty_socket {self.folder / "run"} "$@"\n')
        script.chmod(0o755)
        for name, socket in (("mgmtd", "mgmtd_be.sock"), ("zebra", "zserv.api"), ("staticd", "staticd.vty")):
            _, words, _ = router_frr._daemon(self.folder, name, socket)
            self._started(name, words)
            self.awaited((self.folder / "run" / socket).exists, name)
        # Their sockets are there before the three know each other, and until then a route is refused.
        for word in ("ip route", "no ip route"):
            command = ("configure terminal", f"{word} {PROBE}")
            self.awaited(lambda command=command: self._typed(*command).returncode == 0, "mgmtd")

    def _sshd(self) -> None:
        for name in ("key", "host"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(argv, check=True)
        config = self.folder / "sshd_config"
        config.write_text(
            f"Port {PORT}\nListenAddress 127.0.0.1\nHostKey {self.folder / 'host'}\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder / 'key.pub'}\nPermitRootLogin yes\nPidFile none\n"
            f"SetEnv PATH={self.folder / 'bin'}:/usr/bin:/bin\n"
        )
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        enter = f"mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec {sshd} -D -e -f {config}"
        self._started("sshd", ["unshare", "--mount", "sh", "-c", enter])
        self.awaited(lambda: "listening" in (self.folder / "sshd.log").read_text(), "sshd")

    def _started(self, name: str, words: list[str]) -> None:
        argv = ["nsenter", f"--net=/run/netns/{self.name}", *words]
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def awaited(self, condition: Condition, name: str = "zebra") -> None:
        """Wait until a condition holds; a failure shows the last words of a daemon."""
        with explained(lambda: (self.folder / f"{name}.log").read_text()[-500:]):
            until(condition, f"{name} is ready", PATIENCE)

    def vtysh(self, *commands: str) -> str:
        """Type into the router's own vtysh."""
        done = self._typed(*commands)
        assert done.returncode == 0, f"{commands}: {done.stdout}{done.stderr}"
        return done.stdout

    def _typed(self, *commands: str) -> subprocess.CompletedProcess[str]:
        words = [part for command in commands for part in ("-c", command)]
        argv = [str(self.folder / "bin" / "vtysh"), *words]
        return subprocess.run(argv, check=False, capture_output=True, text=True)

    def routes(self, family: int = 4) -> str:
        """Return the kernel's routes."""
        argv = ["ip", "-n", self.name, f"-{family}", "route"]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def end_daemons(self) -> None:
        """End FRR, as a router that loses its power does, and leave sshd."""
        for process in self._processes[:3]:
            process.send_signal(signal.SIGKILL)
            process.wait()
        del self._processes[:3]

    def stop(self) -> None:
        """End all, and take the namespace away."""
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(["ip", "netns", "delete", self.name], check=False)
