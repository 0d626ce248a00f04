"""Build of the CNI plugin: compiled from C if there is a compiler, otherwise the Python twin as one file.

It uses only the standard library, because the build hook runs this file before linkspan is installed.
"""

from __future__ import annotations

import marshal
import os
import shutil
import subprocess
import sys
from importlib.util import MAGIC_NUMBER
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "linkspan_cni.c"
TWIN = HERE / "linkspan_cni.py"
SOCKET = "/run/linkspan/agent.sock"
"""Same value as in the plugins; this file runs before linkspan is installed, so it imports nothing of it."""
PREBUILT = HERE / "linkspan-cni"
LONGEST_SHEBANG = 255  # BINPRM_BUF_SIZE in include/uapi/linux/binfmts.h is 256

_SCRIPT = """\
# A plugin of linkspan's, made by linkspan/shim/build.py from {name}. It is compiled ahead, for Python
# keeps no compiled form of a script: it would compile it for each container. The source is for other Pythons.
import marshal
from _frozen_importlib_external import MAGIC_NUMBER

SOURCE = {source!r}
COMPILED = {compiled!r}
exec(marshal.loads(COMPILED) if MAGIC_NUMBER == {magic!r} else compile(SOURCE, {name!r}, "exec"))
"""


def build(target: Path) -> bool:
    """Compile the C shim to this path; return False if no compiler can.

    It is linked statically if the machine has a static libc: that starts in a third less time.
    """
    names = (os.environ.get("CC") or "cc", "gcc", "clang")
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        return False
    partial = _beside(target)
    for link in (["-static"], []):
        command = [compiler, "-std=gnu11", "-O2", "-s", *link, "-o", str(partial), str(SOURCE)]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            partial.replace(target)
            return True
    partial.unlink(missing_ok=True)
    return False


def script(python: str) -> bytes:
    """Return the twin as one executable file for this interpreter."""
    return _executable(python, TWIN.name, TWIN.read_text(encoding="utf-8"))


def plugin(runtime: str, python: str, socket: str) -> bytes:
    """Return ``linkspan_RUNTIME.py`` as one executable file for this interpreter, for the agent at this socket."""
    file = HERE / f"linkspan_{runtime}.py"
    source = file.read_text(encoding="utf-8")
    return _executable(python, file.name, source.replace(f'SOCKET = b"{SOCKET}"', f"SOCKET = {socket.encode()!r}"))


def _executable(python: str, name: str, source: str) -> bytes:
    compiled = marshal.dumps(compile(source, name, "exec", optimize=2))
    first = f"#!{python} -IS\n"
    if len(first) > LONGEST_SHEBANG or any(c.isspace() for c in python):
        quoted = python.replace("'", "'\\''")
        first = f"#!/bin/sh\n''':'\nexec '{quoted}' -IS \"$0\"\n'''\n"  # a string to Python, a command to sh
    return (first + _SCRIPT.format(name=name, source=source, compiled=compiled, magic=MAGIC_NUMBER)).encode()


def install(target: Path, python: str = sys.executable) -> str:
    """Put the plugin at this path by a rename; return "compiled" or "python", which is for this interpreter."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target)
    kind = "compiled"
    try:
        if not _copied(partial) and not (build(partial) and _runs(partial)):
            partial.write_bytes(script(python))
            partial.chmod(0o755)
            kind = "python"
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return kind


def _beside(target: Path) -> Path:
    """Return a path in the same folder, with a name that no runtime takes for a plugin."""
    return target.with_name(f".{target.name}.{os.getpid()}")


def _copied(target: Path) -> bool:
    """Copy the plugin from the wheel, and return whether there is one that runs here."""
    if not PREBUILT.is_file():
        return False
    shutil.copyfile(PREBUILT, target)
    target.chmod(0o755)  # not every installer keeps the mode
    return _runs(target)


def _runs(plugin: Path) -> bool:
    """Return whether it answers VERSION: a wheel for another machine does not."""
    try:
        environment = {"CNI_COMMAND": "VERSION"}
        answer = subprocess.run(
            [plugin], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError:
        return False
    return answer.returncode == 0 and b"supportedVersions" in answer.stdout
