"""Random input for the plugin: both forms say the same, and neither crashes."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.shim import build
from support.cni.agent_server import AgentServer, Request, answer
from support.cni.plugin_runs import Outcome, Plugin, compiled, sanitizers

SECONDS = 5
"""For each test; at least MINIMUM inputs are tried whatever the machine."""
MINIMUM = 60
COMMANDS = ("ADD", "ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "EAT")
SEED = 4242
TOKENS = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\0", b"\xff", b"\n", b" ", b"\\u00", b'"socket":', b'"name":',
    b'"cniVersion":', b'"1.1.0"', b"\\\\", b'\\"', b"x" * 140, b"\xc3\xbc", b"null", b"1e9",
]  # fmt: skip
NAMES = [
    "web",
    "",
    "../x",
    "a" * 128,
    "a" * 129,
    "ü",
    'q"\\',
    ".",
    "..",
    "eth0",
    "a" * 15,
    "a" * 16,
    "\x01",
    "a:b",
]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the C form, which ends with 99 after an invalid memory access (if the compiler has the checks)."""
    return compiled(tmp_path_factory.mktemp("sanitized") / "linkspan", *sanitizers())


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python form."""
    path = tmp_path_factory.mktemp("twin") / "linkspan"
    path.write_bytes(build.script(sys.executable))
    path.chmod(0o755)
    return path


def inputs(dice: random.Random, seconds: float) -> Iterator[tuple[dict[str, str], bytes]]:
    """Yield environments and stdins until the time is over."""
    conf = (
        b'{"cniVersion": "1.0.0", "name": "demo", "socket": "/x", "a": [{"name": "x"}, "\\"y\\\\"], "b": 1}'
    )
    until, count = time.monotonic() + seconds, 0
    while count < MINIMUM or time.monotonic() < until:
        count += 1
        text = bytearray(conf)
        for _ in range(dice.choice((0, 1, 1, 2, 5))):
            at = dice.randrange(len(text) + 1)
            text[at : at + dice.choice((0, 0, 1, 4))] = dice.choice(TOKENS)
        if dice.random() < 0.2:
            del text[dice.randrange(len(text) + 1) :]
        environment = {
            "CNI_COMMAND": dice.choice(COMMANDS),
            "CNI_CONTAINERID": dice.choice(["web", "web", dice.choice(NAMES)]),
            "CNI_IFNAME": dice.choice(["eth0", "eth0", dice.choice(NAMES)]),
            "CNI_NETNS": dice.choice(["/proc/self/ns/net", "/proc/self/ns/net", "/nowhere", ""]),
            "CNI_ARGS": "x" * dice.choice((0, 1, 5000)),
        }
        yield {name: value for name, value in environment.items() if value}, bytes(text)


def judge(outcome: Outcome, what: object) -> None:
    """Expect that a run ends with 0 or 1, and with valid JSON or nothing; 1 always has an error object."""
    assert outcome.code in (0, 1), (what, outcome)
    if outcome.stdout or outcome.code == 1:
        printed = json.loads(outcome.stdout)
        assert outcome.code == 0 or (printed["code"] > 0 and printed["msg"]), (what, outcome)


def run(plugin: Plugin, environment: dict[str, str], stdin: bytes) -> Outcome:
    """Run one form with the agent's socket."""
    given = {**environment, "LINKSPAN_SOCKET": str(plugin.socket), "ASAN_OPTIONS": "exitcode=99"}
    return plugin.run_bare(dict(given), stdin)


def test_sanitized_plugin_survives_any_input(sanitized: Path, tmp_path: Path) -> None:
    """No address out of bounds and nothing undefined, whatever the input and whatever the agent answers."""
    dice = random.Random(SEED)  # noqa: S311 - the same inputs each time
    whole = answer(b'{"ips": [{"address": "10.244.0.2/24"}], "dns": {}}')

    def reply(request: Request) -> bytes:
        text = bytearray(whole)
        for _ in range(dice.choice((0, 0, 1, 3))):
            at = dice.randrange(len(text) + 1)
            text[at : at + dice.choice((0, 1, 4))] = dice.choice(
                [*TOKENS, b"\r\n\r\n", b"Content-Length: 5\r\n"]
            )
        return bytes(text)

    plugin = Plugin(sanitized, tmp_path / "agent.sock")
    with AgentServer(plugin.socket, reply):
        for environment, stdin in inputs(dice, SECONDS):
            outcome = run(plugin, environment, stdin)
            assert outcome.code in (0, 1), (environment, stdin, outcome)
            assert outcome.code == 0 or b'"code"' in outcome.stdout or b"ips" in outcome.stdout


@pytest.mark.parametrize("up", [True, False], ids=["agent up", "agent down"])
def test_both_forms_say_the_same(sanitized: Path, twin: Path, tmp_path: Path, up: bool) -> None:
    """Exit status and output of the two are equal on each random input."""
    forms = [Plugin(sanitized, tmp_path / "agent.sock"), Plugin(twin, tmp_path / "agent.sock")]

    dice = random.Random(SEED + up)  # noqa: S311 - the same inputs each time

    def compare() -> None:
        for environment, stdin in inputs(dice, SECONDS):
            first, second = (run(form, environment, stdin) for form in forms)
            judge(first, (environment, stdin))
            assert first[:2] == second[:2], (environment, stdin)

    if not up:
        compare()
        return
    with AgentServer(
        forms[0].socket, lambda request: answer(b'{"sent": "%d"}' % len(request.stdin))
    ) as server:
        compare()
    sent = [(request.variables["CNI_COMMAND"], request.stdin) for request in server.requests]
    assert sent[::2] == sent[1::2]
    assert sent
