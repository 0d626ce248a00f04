"""Output of a tour: headlines, commands with their output, and whether things are as expected."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from rich.console import Console
from rich.markup import escape

from linkspan.core.cells import cells
from linkspan.core.errors import LinkspanError
from linkspan.demo.language import Words
from linkspan.lab import commands

console = Console(highlight=False, soft_wrap=True)


def headline(text: str) -> None:
    """Show the subject of a tour, or of an act; the title of a rule would be cut on a narrow terminal."""
    if cells(text) + 4 <= console.width:
        console.rule(f"[bold]{escape(text)}[/bold]")
    else:
        console.rule()
        console.print(f"[bold]{escape(text)}[/bold]")


class Screen:
    """Shows a tour in a language; ``failed`` collects what was not as expected, and the tour continues."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self.failed: list[str] = []

    def say(self, text: str) -> None:
        """Show a sentence or more."""
        console.print(text)

    def title(self, text: str) -> None:
        """Show the headline of a step."""
        console.print(f"\n[bold]{escape(text)}[/bold]")

    def shown(self, command: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Show a command as a reader would type it, and its output. Raises LinkspanError if it fails."""
        console.print(f"  [cyan]$[/cyan] {escape(command)}")
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=commands.PATIENCE, env=env
        )
        if done.returncode:
            raise LinkspanError(f"{command}: {done.stderr.strip() or done.stdout.strip()}")
        self.output((done.stdout + done.stderr).splitlines())

    def output(self, lines: Sequence[str]) -> None:
        """Show a command's output."""
        for line in lines:
            console.print(f"    [dim]{escape(line)}[/dim]" if line else "")

    def expect(self, condition: bool, text: str) -> None:
        """Show an expected result; the tour fails if it is not met."""
        self.verdict(condition, text, good=condition)

    def verdict(self, expected: bool, text: str, *, good: bool) -> None:
        """Show a result; the tour fails if it is not as expected."""
        mark = "[green]✓[/green]" if good else "[yellow]✗[/yellow]"
        console.print(f"    {mark} {escape(text)}")
        if not expected:
            self.failed.append(text)
            console.print(f"    [red]{self.words('that is not what should happen here')}[/red]")


def retried(command: Sequence[str], seconds: float = 5.0) -> str:
    """Run a client until its server listens, and return its output. Raises LinkspanError."""
    said = ""

    def answered() -> bool:
        nonlocal said
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout if done.returncode == 0 else done.stderr.strip() or done.stdout.strip()
        return done.returncode == 0

    if not commands.await_(answered, seconds):
        raise LinkspanError(f"{' '.join(command)}: {said}")
    return said


@contextlib.contextmanager
def serving(*argv: str) -> Iterator[None]:
    """Run a server meanwhile."""
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.kill()
        server.wait()


def throughput(client: str, server: str, address: str) -> float:
    """Return the bits per second of one TCP stream between two namespaces, over one second. Needs iperf3."""
    inside = ("ip", "netns", "exec")
    with serving(*inside, server, "iperf3", "--server", "--one-off"):
        answer = retried((*inside, client, "iperf3", "--client", address, "--time", "1", "--json"))
    return float(msgspec.json.decode(answer)["end"]["sum_received"]["bits_per_second"])
