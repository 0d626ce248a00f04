"""The plugin that runtimes execute: one suite for both forms of it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from support.cni.agent_server import AgentServer, Request, answer
from support.cni.plugin_runs import COMMANDS, CONF, ERROR, NETNS, VERSIONS, Plugin


@pytest.mark.parametrize("command", COMMANDS)
def test_call_reaches_the_agent_whole(plugin: Plugin, agent: AgentServer, command: str) -> None:
    """The agent gets every CNI_ variable and stdin unchanged, and its answer is printed."""
    agent.reply(lambda request: answer(b'{"ips": []}'))
    outcome = plugin.run(command, CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=a", OTHER="no", CNI_EMPTY="")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, b'{"ips": []}', b"")
    (request,) = agent.requests
    assert request.head.startswith(b"POST /cni HTTP/1.0\r\n")
    assert json.loads(request.stdin) == CONF
    own = str(Path(NETNS).stat().st_ino)
    assert request.variables.pop("LINKSPAN_NETNS_FD").isdigit()
    assert request.variables == {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "web",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": NETNS,
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=a",
        "LINKSPAN_SELF_NETNS": own,
    }


def test_namespace_is_open_while_the_agent_works(plugin: Plugin, agent: AgentServer) -> None:
    """The agent finds the container's namespace behind the descriptor's number."""
    seen = []

    def look(request: Request) -> bytes:
        seen.append(request.namespace())
        return answer()

    agent.reply(look)
    assert plugin.run("ADD", CNI_NETNS="/proc/self/ns/uts").code == 0
    assert seen == [Path("/proc/self/ns/uts").stat().st_ino]


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_namespace_that_cannot_be_opened_is_told(plugin: Plugin, agent: AgentServer, command: str) -> None:
    """The reason goes to the agent, which decides what it means."""
    assert plugin.run(command, CNI_NETNS="/run/netns/nowhere-at-all").code == 0
    variables = agent.requests[0].variables
    assert variables["LINKSPAN_NETNS_ERROR"] == "No such file or directory"
    assert "LINKSPAN_NETNS_FD" not in variables


def test_fifo_as_namespace_does_not_hang(plugin: Plugin, agent: AgentServer, tmp_path: Path) -> None:
    """Opening does not wait for a writer."""
    os.mkfifo(tmp_path / "fifo")
    assert plugin.run("ADD", CNI_NETNS=str(tmp_path / "fifo")).code == 0


def test_no_namespace_on_removal(plugin: Plugin, agent: AgentServer) -> None:
    """DEL works with no CNI_NETNS at all."""
    assert plugin.run("DEL", CNI_NETNS="").code == 0
    assert "LINKSPAN_NETNS_ERROR" not in agent.requests[0].variables


@pytest.mark.parametrize("command", COMMANDS)
def test_error_of_the_agent_is_printed(plugin: Plugin, agent: AgentServer, command: str) -> None:
    """Another status than 200 is exit status 1, with the agent's error object on stdout."""
    agent.reply(lambda request: answer(ERROR, 400))
    outcome = plugin.run(command)
    assert (outcome.code, outcome.stdout) == (1, ERROR)
    assert not plugin.queue.exists()


def test_variables_of_ours_cannot_be_forged(plugin: Plugin, agent: AgentServer) -> None:
    """A LINKSPAN_ variable of the runtime does not reach the agent."""
    plugin.run("ADD", LINKSPAN_NETNS_FD="0", LINKSPAN_SELF_NETNS="1")
    assert agent.requests[0].variables["LINKSPAN_NETNS_FD"] != "0"
    assert agent.requests[0].variables["LINKSPAN_SELF_NETNS"] != "1"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        *((f'{{"cniVersion":"{version}"}}', version) for version in VERSIONS),
        ('{"cniVersion":"9.0.0"}', "1.1.0"),
        ("", "1.1.0"),
        ("{", "1.1.0"),
        ('{"cniVersion":",","x":1}', "1.1.0"),
    ],
)
def test_version_needs_no_agent(plugin: Plugin, text: str, version: str) -> None:
    """VERSION is answered with the requested version, if linkspan supports it."""
    outcome = plugin.run_bare({"CNI_COMMAND": "VERSION"}, text.encode())
    assert (outcome.code, outcome.stderr) == (0, b"")
    assert json.loads(outcome.stdout) == {"cniVersion": version, "supportedVersions": VERSIONS}


def test_version_does_not_wait_for_stdin(plugin: Plugin) -> None:
    """A runtime that leaves stdin open still gets its answer."""
    reading, writing = os.pipe()
    environment = {"CNI_COMMAND": "VERSION"}
    try:
        printed = subprocess.run(
            [plugin.path], env=environment, stdin=reading, capture_output=True, timeout=120
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert json.loads(printed.stdout)["supportedVersions"] == VERSIONS


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("ADD", ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"]),
        ("CHECK", ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"]),
        ("DEL", ["CNI_CONTAINERID", "CNI_IFNAME"]),
        ("", ["CNI_COMMAND"]),
    ],
)
def test_missing_variables_are_all_named(plugin: Plugin, command: str, missing: list[str]) -> None:
    """Code 4, and the message has every one of them and no other."""
    failed = plugin.run(command, CNI_CONTAINERID="", CNI_IFNAME="", CNI_NETNS="").error
    assert failed["code"] == 4
    assert [word for word in failed["msg"].split() if word.startswith("CNI_")] == missing


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_verbs_without_a_container(plugin: Plugin, agent: AgentServer, command: str) -> None:
    """GC and STATUS need none of these variables."""
    assert plugin.run(command, CNI_CONTAINERID="", CNI_IFNAME="", CNI_NETNS="").code == 0


def test_unknown_command_is_code_4(plugin: Plugin) -> None:
    """The command is in the message."""
    failed = plugin.run("EAT").error
    assert (failed["code"], "EAT" in failed["msg"]) == (4, True)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CNI_CONTAINERID", "../x"),
        ("CNI_CONTAINERID", "-x"),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_CONTAINERID", "ü"),
        ("CNI_CONTAINERID", "a" * 129),
        ("CNI_CONTAINERID", b"\xff\xfe"),
        ("CNI_CONTAINERID", 'a"b\\c\n'),
        ("CNI_IFNAME", "sixteen-letters0"),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", "a\tb"),
        ("CNI_IFNAME", "\x7f"),
        ("CNI_IFNAME", b"eth\xff"),
    ],
)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_bad_names_are_code_4(plugin: Plugin, command: str, variable: str, value: str | bytes) -> None:
    """The variable is named, nothing is queued, and the output is JSON whatever the name holds."""
    failed = plugin.run(command, **{variable: value}).error
    assert failed["code"] == 4
    assert variable in failed["msg"]
    assert not plugin.queue.exists()


@pytest.mark.parametrize("name", ["eth0", "a" * 15, "br-1.100", 'q"\\', "@x", "..."])
def test_names_that_the_kernel_takes_are_queued_as_they_are(plugin: Plugin, name: str) -> None:
    """An odd interface name comes back whole from the queue."""
    assert plugin.run("DEL", CNI_IFNAME=name).code == 0
    assert plugin.queued()[0]["ifname"] == name


@pytest.mark.parametrize("name", ["", "../x", "-x", "a" * 129, "a" * 200, "a b", "ü", "a\\"])
@pytest.mark.parametrize("command", COMMANDS)
def test_bad_network_name_is_code_7(plugin: Plugin, command: str, name: str) -> None:
    """The code does not depend on a running agent."""
    assert plugin.run(command, {**CONF, "name": name}).error["code"] == 7


@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b" \n",
        b"{",
        b'{"name":"demo","cniVersion":"1.0.0"',
        b'{"name":"demo',
        b'{"name":"demo\\',
        b'{"name":"demo","x":[{"y":{}}]',
        b"[]",
        b'"x"',
        b"\0",
        b'{"name":"demo"} x',
        b'{"name":"demo"}\0',
        b'{"name":"demo","x":' + b"[" * 500_000,
    ],
)
@pytest.mark.parametrize("command", ["ADD", "DEL", "STATUS"])
def test_stdin_that_is_no_object_is_code_6(plugin: Plugin, command: str, stdin: bytes) -> None:
    """Cut off anywhere, or something else: nothing is sent and nothing queued."""
    assert plugin.run(command, stdin).error["code"] == 6
    assert not plugin.queue.exists()


@pytest.mark.parametrize("size", [1 << 20, 10 << 20])
def test_huge_stdin_is_code_6(plugin: Plugin, agent: AgentServer, size: int) -> None:
    """More than 1 MiB is refused, and the message says so."""
    failed = plugin.run("ADD", b'{"name":"demo","x":"' + b"y" * size + b'"}').error
    assert (failed["code"], "1 MiB" in failed["msg"]) == (6, True)
    assert not agent.requests


def test_a_mebibyte_is_carried(plugin: Plugin, agent: AgentServer) -> None:
    """The largest configuration reaches the agent byte for byte."""
    text = b'{"name":"demo","x":"%s"}'
    text %= b"y" * ((1 << 20) - len(text) + 2)
    assert len(text) == 1 << 20
    assert plugin.run("ADD", text).code == 0
    assert agent.requests[0].stdin == text


@pytest.mark.parametrize(
    "inner",
    [b"[" * 200_000 + b"]" * 200_000, b'"\xff\xfe"', b'"\\ud800"', b"nonsense"],
    ids=["deep", "not utf-8", "surrogate", "nonsense"],
)
def test_what_is_wrong_inside_is_the_agents_to_say(plugin: Plugin, agent: AgentServer, inner: bytes) -> None:
    """The plugin carries what it does not need to understand."""
    text = b'{"name":"demo","cniVersion":"1.0.0","x":%s}' % inner
    assert plugin.run("ADD", text).code == 0
    assert agent.requests[0].stdin == text


@pytest.mark.parametrize(
    "template",
    [
        '{"socket":"PATH","name":"demo"}',
        ' \n{"name" : "demo" , "socket"\t:\r\n "PATH" } \n',
        '{"x":{"socket":"/nowhere"},"y":[{"socket":"/nowhere"},"socket"],"name":"demo","socket":"PATH"}',
        '{"type":"socket","z":"\\\\","k":"\\"socket\\":\\"/nowhere\\"","name":"demo","socket":"PATH"}',
        '{"a":"}{][","socket":"/nowhere","name":"demo","socket":"PATH","more":{"name":"x"}}',
        '{"name":"demo","socket":"ESCAPED"}',
        '{"k":"\\"","name":"demo","socket":"PATH"}',
        '{"k":"\\\\","name":"demo","socket":"PATH","name":{"first":"../x"},"socket":["/nowhere"]}',
        '{"name":"demo","socketsocketsocket":"/nowhere","socket":"PATH","sockets":"/nowhere"}',
    ],
)
def test_socket_is_found_in_the_configuration(plugin: Plugin, agent: AgentServer, template: str) -> None:
    """Only the key of the top level counts, at any place and in any JSON notation."""
    path = str(plugin.socket)
    text = template.replace("PATH", path).replace("ESCAPED", path.replace("/", "\\/"))
    assert plugin.run("ADD", text.encode(), LINKSPAN_SOCKET="").code == 0
    assert len(agent.requests) == 1


def test_environment_overrides_the_socket(plugin: Plugin, agent: AgentServer) -> None:
    """LINKSPAN_SOCKET counts more than the configuration."""
    assert plugin.run("ADD", {**CONF, "socket": "/nowhere/agent.sock"}).code == 0
    assert len(agent.requests) == 1


def test_long_socket_paths_are_refused(plugin: Plugin) -> None:
    """A path that does not fit into a socket address is an error, not a shorter path."""
    assert plugin.run("ADD", LINKSPAN_SOCKET="/" + "x" * 107).error["code"] == 4
    long = {**CONF, "socket": "/" + "x" * 107}
    assert plugin.run("ADD", long, LINKSPAN_SOCKET="").error["code"] == 7


def test_stdin_that_never_ends_does_not_hold_the_plugin(plugin: Plugin) -> None:
    """A runtime that keeps stdin open gets an error."""
    reading, writing = os.pipe()
    os.write(writing, b'{"name":"demo"')
    environment = {"CNI_COMMAND": "GC", "LINKSPAN_TIMEOUT": "1"}
    try:
        ended = subprocess.run([plugin.path], env=environment, stdin=reading, capture_output=True, timeout=120)
    finally:
        os.close(reading)
        os.close(writing)
    assert json.loads(ended.stdout)["code"] == 5


def test_large_environment(plugin: Plugin, agent: AgentServer) -> None:
    """Two variables of 100 kB are carried; 300 kB are an error that says so."""
    large = {"CNI_ARGS": "A=" + "x" * 100_000, "CNI_PATH": "/" + "x" * 100_000}
    assert plugin.run("ADD", **large).code == 0
    assert agent.requests[0].variables["CNI_PATH"] == large["CNI_PATH"]
    failed = plugin.run("ADD", CNI_MORE="x" * 100_000, **large).error
    assert (failed["code"], "256 KiB" in failed["msg"]) == (4, True)


def test_closed_output_is_a_failure(plugin: Plugin, agent: AgentServer) -> None:
    """If nobody reads the result, the runtime must not take it for a success."""
    agent.reply(lambda request: answer(b'{"x":"' + b"y" * 200_000 + b'"}'))
    reading, writing = os.pipe()
    os.close(reading)
    environment = {"CNI_COMMAND": "STATUS", "LINKSPAN_SOCKET": str(plugin.socket)}
    stdin = json.dumps(CONF).encode()
    ended = subprocess.run([plugin.path], env=environment, input=stdin, stdout=writing, timeout=120)
    os.close(writing)
    assert ended.returncode == 1


def test_large_result_is_printed_whole(plugin: Plugin, agent: AgentServer) -> None:
    """More than a pipe or a socket holds at once."""
    body = b'{"x":"' + b"y" * 2_000_000 + b'"}'
    agent.reply(lambda request: answer(body))
    outcome = plugin.run("ADD")
    assert (outcome.code, outcome.stdout == body) == (0, True)
