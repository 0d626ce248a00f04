"""Run the commands in docs/*.md on a host of namespaces, and put their real output into the pages.

In a block that opens with ```console each line that begins with "$ " is a command, and what follows is its
output. A block that opens with ```console fails holds commands that must fail, and one with ```console any
commands whose exit code depends on the machine. <!-- run: COMMAND --> runs unseen. Each page begins with an
empty host: nothing of the machine is seen but its files, and nothing is left. Its resolver is an address that
documents use, so that pages do not change from machine to machine.

A page in docs/zh is not played: it has the commands and the output of the English page (scripts/translations.py).

    sudo .venv/bin/python scripts/docs.py [--check] [PAGE..]

With --check nothing is written, and only a command that ends otherwise than it should is a failure.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import translations

ROOT = Path(__file__).resolve().parent.parent

HOST = """
set -e
mount -t tmpfs tmpfs "$1"
for folder in etc opt var usr/local usr/lib/cni; do
    [ -d "/$folder" ] || continue
    mkdir -p "$1/$folder/upper" "$1/$folder/work"
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$1/$folder/upper,workdir=$1/$folder/work" "/$folder"
done
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lock
rm -f /etc/resolv.conf
echo "nameserver 192.0.2.53" >/etc/resolv.conf
hostname host1
ip link set lo up
"""

HIDDEN = re.compile(r"<!-- run: (.*) -->")


class Host:
    """The host of one page: this process, in its own namespaces, with an agent."""

    def __init__(self, folder: Path) -> None:
        subprocess.run(["bash", "-c", HOST, "bash", str(folder)], check=True)
        self.log = folder / "agent.log"
        self.reader = {"LC_ALL": "C.UTF-8", "XDG_STATE_HOME": str(folder)}  # lessons speak the kept language
        with self.log.open("w") as log:
            self.agent = subprocess.Popen(
                ["linkspan", "agent"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.agent.stdout is not None
        if self.agent.stdout.readline().strip() != "ready":
            sys.exit(f"error: the agent did not start: {self.log.read_text()}")

    def run(self, command: str) -> tuple[int, str]:
        """Run a command as a reader would type it; return its exit code and all its output."""
        done = subprocess.run(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=180,
            env={**os.environ, "COLUMNS": "110", "TERM": "dumb", **self.reader},
        )
        return done.returncode, done.stdout.rstrip("\n")

    def stop(self) -> None:
        """End the agent, labs and servers that the page left, and the processes that either would leave running."""
        for lab in Path("/run/linkspan-lab").glob("*/lab.json"):
            subprocess.run(["linkspan", "lab", "down", "--lab", lab.parent.name], check=False, timeout=60)
        # This page's namespaces alone: its /run is its own.
        servers = "for name in /run/netns/*; do ip netns pids ${name##*/} | xargs --no-run-if-empty kill; done"
        subprocess.run(["bash", "-c", servers], check=False, capture_output=True, timeout=60)
        self.agent.terminate()
        self.agent.wait(30)
        subprocess.run(["linkspan", "uninstall", "--yes", "--force"], check=False, capture_output=True, timeout=60)


def played(host: Host, lines: list[str], wrong: list[str]) -> Iterator[str]:
    """Yield the page's lines with the commands' real output; add commands that end unexpectedly to ``wrong``."""
    block = ""
    for number, line in enumerate(lines, 1):
        if hidden := HIDDEN.fullmatch(line.strip()):
            code, output = host.run(hidden[1])
            if code:
                wrong.append(f"line {number}: {hidden[1]}: exit code {code}: {output}")
        if block and line.startswith("```"):
            block = ""
        elif line.startswith("```console"):
            block = line.removeprefix("```")
        elif block and line.startswith("$ "):
            yield line
            code, output = host.run(line.removeprefix("$ "))
            if bool(code) != block.endswith("fails") and not block.endswith("any"):
                wrong.append(f"line {number}: {line}: exit code {code}: {output}")
            yield from (printed.rstrip() for printed in output.splitlines())
            continue
        elif block:
            continue  # the earlier output
        yield line


def play(page: Path, folder: Path, check: bool) -> int:
    """Play one page, in the namespaces of this process."""
    lines = page.read_text().splitlines()
    wrong: list[str] = []
    host = Host(folder)
    try:
        new = list(played(host, lines, wrong))
    finally:
        host.stop()
    for complaint in wrong:
        print(f"{page.relative_to(ROOT)}: {complaint}")
    if not check and not wrong:
        page.write_text("\n".join(new) + "\n")
        translations.follow(page)
    return 1 if wrong else 0


def main() -> int:
    """Play each page in namespaces of its own."""
    parser = argparse.ArgumentParser(description="put real output into the pages")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("pages", nargs="*", type=Path)
    arguments = parser.parse_args()
    if os.geteuid():
        sys.exit("error: this makes network namespaces, which needs root")
    if arguments.inside:
        return play(arguments.pages[0], Path(arguments.inside), arguments.check)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    failed = 0
    for page in arguments.pages or sorted((ROOT / "docs").glob("*.md")):
        with tempfile.TemporaryDirectory(prefix="lkp") as folder:
            again = [sys.executable, __file__, *(["--check"] if arguments.check else []), "--inside", folder]
            namespaces = ["unshare", "--net", "--mount", "--uts", "--propagation", "private"]
            failed |= subprocess.run([*namespaces, *again, str(page.resolve())], check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
