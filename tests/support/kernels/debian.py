"""Debian's kernel, which has what the testing machine's may lack: unpacked, never installed, and booted by QEMU.

It is emulated whatever the machine: a /dev/kvm that opens is no sign that it works.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote

PACKAGE = "linux-image-cloud-amd64"
QEMU, VIRTIOFSD = "qemu-system-x86_64", "/usr/libexec/virtiofsd"
CACHE = Path(sys.prefix, "cache", "kernels")
INIT = Path(__file__).with_name("init")
MEMORY = 1024
"""MiB; what is written inside stays in it."""
PRIORITY = -10
"""It is slow enough by itself: the programs inside have no more patience than on a real machine."""


class Missing(Exception):
    """This machine lacks something for it."""


def kernel() -> Path:
    """Return the folder with Debian's kernel, downloaded once. Raises Missing where it cannot be had."""
    if platform.machine() != "x86_64":
        raise Missing(f"{PACKAGE} is for x86_64, and this is {platform.machine()}")
    for tool, package in ((QEMU, "qemu-system-x86"), (VIRTIOFSD, "virtiofsd"), ("depmod", "kmod")):
        if not shutil.which(tool):
            raise Missing(f"{tool} is not installed: apt-get install {package}")
    if not shutil.which("apt-cache"):
        raise Missing(f"no apt here, and {PACKAGE} is Debian's")
    depends = subprocess.run(
        ("apt-cache", "depends", PACKAGE), capture_output=True, text=True, check=False
    ).stdout
    names = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image-" in line]
    if not names:
        raise Missing(f"apt knows no {PACKAGE}: it is Debian's (apt-get update?)")
    folder = CACHE / names[0]
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            _unpack(names[0], Path(scratch))
            with contextlib.suppress(OSError):  # another run was faster
                Path(scratch, "kernel").rename(folder)
    return folder


def _unpack(name: str, scratch: Path) -> None:
    def run(*argv: str) -> None:
        done = subprocess.run(argv, cwd=scratch, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Missing(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")

    run("apt-get", "-q", "download", name)
    run("dpkg", "-x", *(str(path) for path in scratch.glob("*.deb")), "kernel")
    usr = scratch / "kernel/usr"
    for release in (usr / "lib/modules").iterdir():
        run("depmod", "-b", str(usr), release.name)


def run(job: Sequence[str], cwd: Path, share: Path, env: Mapping[str, str], seconds: float) -> str:
    """Boot, run a command in ``cwd`` with ``env``, and return what machine and command said.

    Inside, the file systems are this machine's, and what is written is lost but for what is below ``share``.
    Raises Missing as ``kernel`` does.
    """
    folder = kernel()
    script, output, log = (share / name for name in ("job", "output", "console"))
    assign = (f"export {name}={quote(value)}" for name, value in env.items())
    lines = [
        "#!/bin/sh",
        f"cd {quote(str(cwd))}",
        *assign,
        f"exec {' '.join(map(quote, job))} >{output} 2>&1",
    ]
    script.write_text("\n".join(lines) + "\n")
    script.chmod(0o755)
    with _files(share, (folder, cwd, Path(sys.prefix))) as socket:
        machine = subprocess.Popen(_qemu(folder, socket, log, script), stdin=subprocess.DEVNULL)
        try:
            machine.wait(seconds)
        except subprocess.TimeoutExpired:
            with log.open("a") as file:
                file.write(f"\nnot ended after {seconds:.0f} s, and killed\n")
        finally:
            machine.kill()
            machine.wait()
    return "".join(path.read_text(errors="replace") for path in (log, output) if path.exists())


def _qemu(folder: Path, socket: Path, log: Path, script: Path) -> list[str]:
    (image,) = (folder / "boot").glob("vmlinuz-*")
    ours = f"init={INIT} share={script.parent} modules={folder}/usr/lib/modules job={script}"
    # Where the machine is busy, the emulated timer may not tick while the kernel looks whether it does. The kernel does
    # not trust the emulated TSC by itself, and every look at another clock leaves the emulated code: that, and zeros in
    # memory that nobody reads, would be a third of all that the machine computes.
    clock, memory = "no_timer_check tsc=reliable", "init_on_alloc=0"
    kernel = f"console=ttyS0 quiet panic=-1 mitigations=off {clock} {memory} root=rootfs rootfstype=virtiofs rw {ours}"
    return [
        *("nice", "-n", str(PRIORITY)),
        *(QEMU, "-M", "q35,hpet=off", "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "2", "-m", str(MEMORY)),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{log}"),
        *("-object", f"memory-backend-memfd,id=m,size={MEMORY}M,share=on", "-numa", "node,memdev=m"),
        *("-chardev", f"socket,id=c,path={socket}", "-device", "vhost-user-fs-pci,chardev=c,tag=rootfs"),
        *("-kernel", str(image), "-append", kernel),
    ]


@contextlib.contextmanager
def _files(share: Path, needed: Sequence[Path]) -> Iterator[Path]:
    """Serve this machine's root file system, and what is needed of others; yield the socket.

    Only a bind of / that does not follow mounts can be an overlay's lower layer.
    """
    socket = share / "virtiofs"
    root = os.stat("/").st_dev
    others = [path for path in (share, *needed) if path.stat().st_dev != root]
    mounts = [f"mount --bind {quote(str(path))} {quote(f'/mnt{path}')}" for path in others]
    steps = ["mount --make-rprivate /", "mount --bind / /mnt", *mounts]
    serve = f"exec {VIRTIOFSD} --socket-path={socket} --shared-dir=/mnt --sandbox=none --cache=always"
    with (share / "virtiofsd").open("w") as log:
        server = subprocess.Popen(
            ("unshare", "--mount", "sh", "-ec", "\n".join([*steps, serve])), stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + 20
        while not socket.exists():
            if server.poll() is not None or time.monotonic() > end:
                raise Missing(f"virtiofsd does not serve: {(share / 'virtiofsd').read_text()}")
            time.sleep(0.02)
        yield socket
    finally:
        server.kill()
        server.wait()
