"""Bad input: each error names object, cause and what to do, in one line, and nothing is left behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linkspan.cli import main as command_line
from support.agent.agent_host import Host, World, first_ip, run
from support.polling import until

MAC = "02:00:00:00:00:07"


class Busy(Host):
    """A host in use; ``names`` has its objects by the words that stand for them in the tables below."""

    names: dict[str, str]


@pytest.fixture(scope="module")
def busy() -> Iterator[Busy]:
    """Return a host with two networks, a container, a reservation, a route and a cable of its own."""
    world = World()
    host = Busy(world)
    try:
        host.start()
        host.outside()
        run("ip", "route", "add", "172.20.0.0/16", "via", "198.51.100.2", netns=host.netns)
        host.network("demo", "10.201.0.0/24", "fd00:201::/64")
        host.network("other", "10.202.0.0/24", options={"mode": "routed"})
        host.network("inner", "10.203.0.0/24", internal=True)
        host.network("bare", backend="host", pools=[])
        host.cli("address", "reserve", "demo", "10.201.0.64/26")
        holder, free = world.namespace(), world.namespace()
        run("ip", "link", "add", "made", "type", "bridge", netns=free)
        host.attach(holder, name="web", mac=MAC, ports=[port(8080)], ips=["10.201.0.9"])
        host.names = {"FREE": free, "HOLDER": holder, "OWN": host.netns, "FILE": str(host.config)}
        yield host
    finally:
        host.close()
        world.remove()


def port(number: int) -> dict[str, Any]:
    """Return a published TCP port."""
    return {"host_ip": "", "host_port": number, "port": 80, "protocol": "tcp"}


def state(host: Host) -> tuple[Any, ...]:
    """Return all that a refused request must leave as it was."""
    ask = host.client.call
    ruleset = sorted(run("nft", "list", "ruleset", netns=host.netns).replace(",", "").split())
    routes = run("ip", "route", netns=host.netns) + run("ip", "-6", "route", netns=host.netns)
    known = [ask("GET", f"/v1/{what}") for what in ("networks", "endpoints", "addresses")]
    return host.links(), ruleset, routes, known


CREATE = ["network", "create", "new"]
ATTACH = ["attach", "FREE", "--network", "demo"]
REFUSED = [
    ([*CREATE], ["new has no pool", "--pool"]),
    ([*CREATE, "--pool", "10.9.0.0/33"], ["10.9.0.0/33"]),
    ([*CREATE, "--pool", "tomato"], ["tomato"]),
    ([*CREATE, "--pool", "10.9.0.1/16"], ["10.9.0.1/16"]),
    ([*CREATE, "--pool", "10.9.0.0/16,10.9.4.0/24"], ["10.9.0.0/16", "10.9.4.0/24", "overlap"]),
    ([*CREATE, "--pool", "10.201.0.0/16"], ["10.201.0.0/16", "10.201.0.0/24", "network demo"]),
    ([*CREATE, "--pool", "172.20.9.0/24"], ["172.20.9.0/24", "172.20.0.0/16", "uplink"]),
    ([*CREATE, "--pool", "198.51.100.128/25"], ["198.51.100.0/24", "uplink"]),
    ([*CREATE, "--pool", "2001:db8::/48"], ["2001:db8::/64", "uplink"]),
    ([*CREATE, "--pool", "127.8.0.0/16"], ["127.8.0.0/16"]),
    ([*CREATE, "--pool", "224.1.0.0/16"], ["224.1.0.0/16"]),
    ([*CREATE, "--pool", "fe80::/64"], ["fe80::/64"]),
    ([*CREATE, "--pool", "10.9.0.0/32"], ["10.9.0.0/32", "mode=routed"]),
    ([*CREATE, "--pool", "10.9.0.0/24", "--opt", "colour=red"], ["colour=red", "bridge", "mode="]),
    ([*CREATE, "--pool", "10.9.0.0/24", "--opt", "mode=odd"], ["mode=odd"]),
    ([*CREATE, "--pool", "10.9.0.0/24", "--backend", "pigeon"], ["pigeon", "bridge"]),
    ([*CREATE, "--pool", "10.9.0.0/24", "--mtu", "1279"], ["MTU 1279", "1280", "65535"]),
    ([*CREATE, "--pool", "10.9.0.0/24", "--mtu", "65536"], ["MTU 65536"]),
    ([*CREATE, "--pool", "10.9.0.0/24", "--ipam", "guess"], ["guess"]),
    ([*CREATE, "--pool", "10.9.0.0/24", "--subnet-len", "26"], ["/26"]),
    ([*CREATE, "--pool", "10.9.0.0/24", "--subnet-len", "24,64"], ["no IPv6 pool", "/64", "--subnet-len"]),
    (["network", "create", "demo", "--pool", "10.9.0.0/24"], ["network demo exists"]),
    (["network", "create", "a/b", "--pool", "10.9.0.0/24"], ["a/b"]),
    (["network", "create", "x" * 129, "--pool", "10.9.0.0/24"], ["xxx"]),
    (["network", "show", "nowhere"], ["nowhere", "demo", "network create"]),
    (["network", "delete", "demo"], ["demo", "web", "--force"]),
    (["network", "delete", "nowhere"], ["nowhere"]),
    (["network", "update", "demo", "--add-pool", "10.202.0.0/25"], ["network other"]),
    (["network", "update", "demo", "--mtu", "10"], ["MTU 10"]),
    (["network", "update", "demo", "--opt", "mode=routed"], ["demo", "cannot change"]),
    (["network", "allow", "demo", "nowhere"], ["nowhere"]),
    (["network", "allow", "demo", "demo"], ["reaches itself"]),
    (["address", "reserve", "demo", "10.9.0.0/24"], ["10.9.0.0/24", "demo", "10.201.0.0/24"]),
    (["address", "reserve", "demo", "soup"], ["soup"]),
    (["address", "unreserve", "demo", "10.201.0.1/32"], ["not reserved"]),
    (["address", "show", "192.0.2.1"], ["192.0.2.1", "no network's pool"]),
    (["attach", "FREE", "--network", "nowhere"], ["nowhere", "demo", "other"]),
    (["attach", "netns:nowhere", "--network", "demo"], ["/run/netns/nowhere", "running"]),
    (["attach", "OWN", "--network", "demo"], ["the host's own", "--backend host"]),
    (["attach", "FILE", "--network", "demo"], ["agent.toml is not a network namespace", "/run/netns/NAME"]),
    (["attach", "/dev/null", "--network", "demo"], ["/dev/null is not a network namespace"]),
    (["attach", "/", "--network", "demo", "--id", "root"], ["/ is not a network namespace"]),
    (["attach", "pid:0", "--network", "demo"], ["/proc/0/ns/net"]),
    (["attach", "pid:x", "--network", "demo"], ["'x' is not a process id"]),
    (["attach", "ship:x", "--network", "demo"], ["ship:x", "netns:NAME"]),
    ([*ATTACH, "--ifname", "made"], ["made", "exists in the container", "--ifname"]),
    ([*ATTACH, "--ifname", "lo"], ["lo", "exists in the container", "--ifname"]),
    ([*ATTACH, "--ifname", "sixteencharacter"], ["sixteencharacter", "16", "1 to 15"]),
    ([*ATTACH, "--ifname", "a/b"], ["a/b"]),
    ([*ATTACH, "--ifname", "all"], ["all"]),
    ([*ATTACH, "--ifname", "default"], ["default"]),
    ([*ATTACH, "--id", "../x"], ["../x"]),
    ([*ATTACH, "--name", "a b"], ["a b"]),
    ([*ATTACH, "--ip", "10.9.9.9"], ["10.9.9.9", "demo", "10.201.0.0/24"]),
    ([*ATTACH, "--ip", "10.201.0.9"], ["10.201.0.9", "in use by web"]),
    ([*ATTACH, "--ip", "10.201.0.0"], ["10.201.0.0", "network address"]),
    ([*ATTACH, "--ip", "10.201.0.255"], ["10.201.0.255", "broadcast"]),
    ([*ATTACH, "--ip", "10.201.0.1"], ["10.201.0.1", "gateway"]),
    ([*ATTACH, "--ip", "fd00:201::"], ["fd00:201::", "anycast"]),
    ([*ATTACH, "--ip", "10.201.0.300"], ["10.201.0.300"]),
    ([*ATTACH, "--ip", "10.201.0.7/24"], ["--ip 10.201.0.7/24", "prefix length", "--ip 10.201.0.7"]),
    ([*ATTACH, "--ip", "10.201.0.0/24"], ["--ip 10.201.0.0/24", "prefix length"]),
    ([*ATTACH, "--mac", "soup"], ["soup"]),
    ([*ATTACH, "--mac", "01:00:5e:00:00:01"], ["01:00:5e:00:00:01"]),
    ([*ATTACH, "--mac", "00:00:00:00:00:00"], ["00:00:00:00:00:00"]),
    ([*ATTACH, "--mac", MAC.upper()], [MAC, "used by web"]),
    ([*ATTACH, "--publish", "80"], ["'80'", "8080:80"]),
    ([*ATTACH, "--publish", "0:80"], ["0:80", "1 to 65535"]),
    ([*ATTACH, "--publish", "70000:80"], ["70000"]),
    ([*ATTACH, "--publish", "90-80:90-80"], ["90-80", "backwards"]),
    ([*ATTACH, "--publish", "80-90:80-85"], ["lengths"]),
    ([*ATTACH, "--publish", "80:80/icmp"], ["80:80/icmp"]),
    ([*ATTACH, "--publish", "1.2.3:80:80"], ["1.2.3"]),
    ([*ATTACH, "--publish", "8080:81"], ["8080/tcp", "web", "demo"]),
    ([*ATTACH, "--publish", "9000:80,9000:81"], ["9000/tcp"]),
    (["attach", "FREE", "--network", "inner", "--publish", "9000:80"], ["inner", "internal"]),
    (["attach", "nobody", "--network", "bare", "--ip", "10.9.9.9"], ["bare", "10.9.9.9"]),
    (["attach", "FREE", "--network", "bare"], ["bare", "namespace of its own"]),
    (["attach", "HOLDER", "--network", "demo", "--ifname", "eth0"], ["eth0", "attached already", "detach"]),
    (["endpoint", "show", "nobody"], ["nobody"]),
    (["endpoint", "list", "--network", "nowhere"], ["nowhere"]),
    (["plan", "--network", "nowhere"], ["nowhere"]),
]


def spoken(host: Busy, monkeypatch: pytest.MonkeyPatch, capfd: Any, *words: str) -> tuple[int, str, str]:
    """Run the command line in this process, which is a tenth of the time; return its exit code and output."""
    argv = ["linkspan", *(host.names.get(word, word) for word in words)]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setenv("LINKSPAN_SOCKET", str(host.socket))
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=lambda v: " ".join(v)[:60])
def test_a_refusal_says_what_and_why(
    busy: Busy, monkeypatch: pytest.MonkeyPatch, capfd: Any, words: list[str], said: list[str]
) -> None:
    """One line on stderr names object and cause, exit code 1; -o json has it as an object; nothing is left."""
    before = state(busy)
    code, out, err = spoken(busy, monkeypatch, capfd, *words, "-o", "json")
    assert (code, err.count("\n"), err.startswith("linkspan: ")) == (1, 1, True), (out, err)
    assert [word for word in said if word not in err] == [], err
    error = json.loads(out)["error"]
    assert error["code"] in ("invalid", "conflict", "not_found", "exhausted")
    assert err == f"linkspan: {error['message']}{'; ' + error['hint'] if error['hint'] else ''}\n"
    assert state(busy) == before
    assert busy.differences() == []
    assert busy.check()["ok"]


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["attach"],
        ["attach", "x"],
        ["network", "create"],
        ["network", "create", "x", "--opt", "colour"],
        ["network", "create", "x", "--mtu", "many"],
        ["network", "create", "x", "--subnet-len", "a"],
        ["network", "allow", "a", "b", "--port", "x"],
        ["detach"],
        ["status", "-o", "xml"],
        ["attach", "x", "--network", "demo", "--label", "soup"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(
    busy: Busy, monkeypatch: pytest.MonkeyPatch, capfd: Any, words: list[str]
) -> None:
    """Words that the command line does not understand end with exit code 2 and never reach the agent."""
    code, out, err = spoken(busy, monkeypatch, capfd, *words)
    assert (code, out) == (2, "")
    assert err


def test_no_agent_is_told(busy: Busy, monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path) -> None:
    """Without an agent each command says so, with the socket's path and how to start one."""
    missing = tmp_path / "agent.sock"
    for words in (["status"], ["attach", "FREE", "--network", "demo"], ["diff"]):
        code, _, err = spoken(busy, monkeypatch, capfd, *words, "--socket", str(missing))
        assert code == 1
        assert f"no agent answers at {missing}" in err
        assert "linkspan agent" in err


def raw(host: Host, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Send a request as it is and return status and decoded answer."""
    connection = http.client.HTTPConnection("x", timeout=120)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(20)
    connection.sock.connect(str(host.socket))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read all that it refuses
        connection.request(method, path, body)
    response = connection.getresponse()
    return response.status, dict(json.loads(response.read()))


DEEP = b'{"id": "x", "network": "demo", "odd": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BODIES = [
    pytest.param(b"", 400, id="empty"),
    pytest.param(b'{"id": "x", "netw', 400, id="cut off"),
    pytest.param(b'{"id": "\xff\xfe", "network": "demo"}', 400, id="not UTF-8"),
    pytest.param(DEEP, 400, id="deeply nested"),
    pytest.param(b"[" * 100_000, 400, id="deeply nested and cut off"),
    pytest.param(b'{"id": "' + b"x" * (10 << 20) + b'"}', 413, id="10 MB"),
    pytest.param(b"[]", 400, id="a list"),
    pytest.param(b'{"id": 7, "network": "demo"}', 400, id="a number for a name"),
    pytest.param(b'{"id": "x", "network": "demo", "namespace_fd": 1e99}', 400, id="a huge number"),
    pytest.param(b'{"id": "x", "network": "demo", "namespace_fd": 1048575}', 404, id="a descriptor that is not open"),
    pytest.param(b'{"id": "x", "network": "demo", "namespace_fd": 0}', 400, id="a descriptor of a file"),
    pytest.param(b'{"id": "x", "network": "demo"}', 400, id="no namespace"),
    pytest.param(b'{"id": "x\\ud800", "network": "demo"}', 400, id="half a surrogate"),
]


@pytest.mark.parametrize(("body", "status"), BODIES)
def test_the_api_answers_bad_bodies(busy: Busy, body: bytes, status: int) -> None:
    """The API answers an invalid body with a 4xx and an error object, the agent lives, and nothing is left."""
    before = state(busy)
    code, answer = raw(busy, "POST", "/v1/attach", body)
    assert code == status, answer
    assert answer["error"]["message"]
    assert set(answer["error"]) == {"code", "message", "hint"}
    assert state(busy) == before


@pytest.mark.parametrize(("body", "status"), [*BODIES[:2], *BODIES[3:7]])
def test_every_route_answers_bad_bodies(busy: Busy, body: bytes, status: int) -> None:
    """The other routes that take a body refuse the same ones."""
    for method, path in (
        ("POST", "/v1/networks"),
        ("PATCH", "/v1/networks/demo"),
        ("POST", "/v1/detach"),
        ("POST", "/v1/allowances"),
        ("POST", "/v1/reservations"),
    ):
        code, answer = raw(busy, method, path, body)
        assert code == status, (path, answer)
        assert answer["error"]["message"]


def test_paths_and_methods_that_are_not_there(busy: Busy) -> None:
    """Unknown paths and methods are a 404 and a 405 with an error object."""
    for method, path, status in (
        ("GET", "/v1/soup", 404),
        ("GET", "/", 404),
        ("DELETE", "/v1/attach", 405),
        ("GET", "/v1/addresses/soup", 400),
        ("GET", "/v1/endpoints/%ff%00", 404),
    ):
        code, answer = raw(busy, method, path, b"")
        assert (code, bool(answer["error"]["message"])) == (status, True), (path, answer)


def test_a_body_that_never_ends_is_let_go(busy: Busy) -> None:
    """A client that goes away in the middle of its request leaves nothing."""
    before = state(busy)
    for sent in (b"", b"POST /v1/att", b"POST /v1/attach HTTP/1.1\r\nContent-Length: 100\r\n\r\n{", b"\0" * 1000):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(busy.socket))
            client.sendall(sent)
    assert state(busy) == before


def test_a_namespace_that_goes_between_open_and_attach(busy: Busy) -> None:
    """Its name is deleted while the caller holds it open: all that was made goes with it, by --fix at the latest."""
    world = busy.world
    name = world.namespace()
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        world.delete(name)
        body = {"id": "gone", "network": "demo", "namespace_fd": fd, "namespace_path": f"/run/netns/{name}"}
        endpoint = busy.client.call("POST", "/v1/attach", body)
    finally:
        os.close(fd)
    until(lambda: busy.check()["leaked"], "the loss is seen")
    assert busy.client.call("POST", "/v1/address-check")["ok"]
    assert busy.differences() == []
    assert endpoint["host_ifname"] not in busy.links()
    assert busy.client.call("GET", f"/v1/addresses/{first_ip(endpoint)}")[0]["state"] == "free"


def as_user(host: Host, group: int, *words: str) -> tuple[int, str]:
    """Run the command line as user 65534 of a group; return exit code and stderr."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # a fork: the user need not be able to read our folders
        try:
            os.dup2(writing, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.setgroups([])
            os.setresgid(group, group, group)
            os.setresuid(65534, 65534, 65534)
            os.environ["LINKSPAN_SOCKET"] = str(host.socket)
            sys.argv = ["linkspan", *words]
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            command_line.main()
        except SystemExit as ended:
            sys.stderr.flush()
            os._exit(int(ended.code or 0))
        finally:
            os._exit(99)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said


def test_users_may_read_by_the_group_and_change_nothing(busy: Busy) -> None:
    """A member of the socket's group reads; changing is root's, and both refusals say what to do."""
    busy.folder.chmod(0o755)
    os.chown(busy.socket, 0, 4242)
    before = state(busy)
    for words in (["status"], ["network", "list"], ["endpoint", "list"], ["address", "list"], ["plan"], ["diff"]):
        assert as_user(busy, 4242, *words) == (0, ""), words
    for words in (
        ["network", "create", "new", "--pool", "10.9.0.0/24"],
        ["network", "delete", "other"],
        ["detach", "--id", "x"],
        ["address", "check", "--fix"],
        ["address", "reserve", "demo", "10.201.0.7/32"],
    ):
        code, said = as_user(busy, 4242, *words)
        assert (code, "changes need root" in said, "sudo" in said) == (1, True, True), (words, said)
    code, said = as_user(busy, 65534, "status")
    assert code == 1
    assert "may not use the agent's socket" in said
    assert "group linkspan" in said
    assert state(busy) == before


def test_the_agent_lives_on(busy: Busy) -> None:
    """After all of this the agent that was started first still answers, and never failed inside."""
    assert busy.process is not None
    assert busy.process.poll() is None
    assert busy.client.call("GET", "/v1/status")["agent"]["pid"] == busy.process.pid
    lines = [json.loads(line) for line in busy.log.read_text().splitlines()]
    assert [x for x in lines if x["level"] == "error" and x["logger"].startswith("linkspan")] == []
