"""The other verbs, namespaces, and input that is no call."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from linkspan.core.errors import KernelError
from support.cni.cni_agent import FakeAgent
from support.cni.cni_calls import VERSIONS, Runtime, conf


@pytest.fixture
def runtime() -> Runtime:
    """Return a runtime with its agent."""
    return Runtime(FakeAgent())


@pytest.fixture
def added(runtime: Runtime) -> dict[str, Any]:
    """Return the result of an ADD."""
    return dict(runtime.call("ADD", conf("1.1.0")))


@pytest.mark.parametrize("version", VERSIONS)
def test_removal_can_be_repeated(runtime: Runtime, version: str) -> None:
    """The second DEL, with no namespace and no prevResult, succeeds as the first did."""
    runtime.call("ADD", conf(version))
    for namespace in ("/run/netns/web", "", ""):
        assert runtime.call("DEL", conf(version), CNI_NETNS=namespace, LINKSPAN_NETNS_FD="") is None
    assert not runtime.agent.attached


def test_removal_needs_neither_network_nor_namespace(runtime: Runtime) -> None:
    """It succeeds with a deleted network, and with a namespace that is gone."""
    runtime.call("DEL", {**conf(), "name": "gone"}, LINKSPAN_NETNS_FD="", LINKSPAN_NETNS_ERROR="No such file")


def test_removal_after_a_refused_add_succeeds(runtime: Runtime) -> None:
    """A runtime removes what it failed to add, with the same configuration."""
    wrong = conf(runtimeConfig={"ips": "nonsense"}, prevResult=[])
    assert runtime.fail("ADD", wrong)["code"] == 7
    runtime.call("DEL", wrong)


def test_removal_touches_only_its_own_interface_and_network(runtime: Runtime) -> None:
    """The other interface of the container, and the same one on another network, stay."""
    runtime.call("ADD", conf())
    runtime.call("ADD", conf(), CNI_IFNAME="eth1")
    runtime.call("DEL", conf(), CNI_IFNAME="eth1")
    runtime.call("DEL", {**conf(), "name": "other"})
    assert list(runtime.agent.attached) == [("web", "eth0")]


def test_removal_that_the_kernel_refuses_is_an_error(runtime: Runtime) -> None:
    """A failed removal returns an error, so that the runtime calls again."""
    runtime.agent.fails["detach"] = KernelError("delete link: busy", 16)
    assert runtime.fail("DEL", conf())["code"] == 104


def test_check_passes_on_what_was_added(runtime: Runtime, added: dict[str, Any]) -> None:
    """CHECK right after ADD prints nothing."""
    assert runtime.call("CHECK", conf("1.1.0", prevResult=added)) is None
    ((endpoint, *shown),) = runtime.agent.checked
    assert endpoint == runtime.agent.attached["web", "eth0"]
    assert shown == [endpoint.mac, endpoint.mtu]


def test_check_says_what_differs(runtime: Runtime, added: dict[str, Any]) -> None:
    """Every difference is in the message."""
    runtime.agent.differs = ["address 10.244.0.2/24 is missing", "link is down"]
    failed = runtime.fail("CHECK", conf("1.1.0", prevResult=added))
    assert failed["code"] == 105
    assert all(text in failed["msg"] for text in runtime.agent.differs)


def test_check_tolerates_what_later_plugins_change(runtime: Runtime, added: dict[str, Any]) -> None:
    """More interfaces, addresses and routes, another MAC and MTU: the agent is reported those to compare with."""
    added["interfaces"].append({"name": "ifb0"})
    added["interfaces"][1].update(mac="02:00:00:00:00:0F", mtu=1300)
    added["ips"].append({"address": "192.0.2.9/24"})
    added["routes"] = [{"dst": "0.0.0.0/0", "gw": "192.0.2.1"}]
    runtime.call("CHECK", conf("1.1.0", prevResult=added))
    assert runtime.agent.checked[0][1:] == ("02:00:00:00:00:0F", 1300)


def test_check_misses_our_address_in_the_chains_result(runtime: Runtime, added: dict[str, Any]) -> None:
    """A plugin that took our address away from the result has broken the container."""
    added["ips"].pop(0)
    assert "10.244.0.2/24" in runtime.fail("CHECK", conf("1.1.0", prevResult=added))["msg"]


def test_check_misses_our_address_on_our_interface(runtime: Runtime, added: dict[str, Any]) -> None:
    """The same address on another interface is not the one that was given."""
    added["ips"][0]["interface"] = 0
    assert "10.244.0.2/24" in runtime.fail("CHECK", conf("1.1.0", prevResult=added))["msg"]


def test_check_of_an_unknown_container(runtime: Runtime, added: dict[str, Any]) -> None:
    """Code 3, for another id and for the same on another network."""
    given = conf("1.1.0", prevResult=added)
    assert runtime.fail("CHECK", given, CNI_CONTAINERID="db")["code"] == 3
    assert runtime.fail("CHECK", {**given, "name": "other"})["code"] == 3


def test_check_needs_the_result(runtime: Runtime, added: dict[str, Any]) -> None:
    """Without prevResult there is no result to compare with."""
    failed = runtime.fail("CHECK", conf("1.1.0"))
    assert (failed["code"], "prevResult" in failed["msg"]) == (7, True)


def test_check_finds_another_namespace(runtime: Runtime, added: dict[str, Any]) -> None:
    """A namespace that was made again under the same path is not the container's."""
    endpoint = runtime.agent.attached["web", "eth0"]
    runtime.agent.attached["web", "eth0"] = type(endpoint)(
        **{name: getattr(endpoint, name) for name in endpoint.__struct_fields__ if name != "netns"}, netns=1
    )
    assert runtime.fail("CHECK", conf("1.1.0", prevResult=added))["code"] == 8


@pytest.mark.parametrize(
    ("command", "version", "ok"),
    [
        ("CHECK", "0.3.1", False),
        ("GC", "1.0.0", False),
        ("GC", "1.1.0", True),
        ("STATUS", "1.0.0", False),
        ("STATUS", "1.1.0", True),
    ],
)
def test_verbs_need_the_version_that_brought_them(
    runtime: Runtime, command: str, version: str, ok: bool
) -> None:
    """A configuration of an older version gets code 1, in its own version."""
    status, answer = runtime.try_call(command, conf(version))
    assert (status == 200) == ok
    assert answer is None if ok else (answer["code"], answer["cniVersion"]) == (1, version)


def test_collection_keeps_what_is_valid_or_not_from_cni(runtime: Runtime) -> None:
    """Only endpoints of this network that came by CNI and are not listed go."""
    for ifname in ("eth0", "eth1", "eth2"):
        runtime.call("ADD", conf(), CNI_IFNAME=ifname)
    runtime.agent.relabel(("web", "eth2"), {"app": "by hand"})
    valid = [{"containerID": "web", "ifname": "eth0"}]
    runtime.call("GC", conf("1.1.0", **{"cni.dev/valid-attachments": valid}))
    assert set(runtime.agent.attached) == {("web", "eth0"), ("web", "eth2")}


@pytest.mark.parametrize("none", [[], None], ids=["empty", "null"])
def test_collection_needs_a_list(runtime: Runtime, none: object) -> None:
    """A missing list deletes nothing; an empty one, which Go may write as null, deletes all."""
    runtime.call("ADD", conf())
    runtime.call("GC", conf("1.1.0"))
    assert runtime.agent.attached
    runtime.call("GC", conf("1.1.0", **{"cni.dev/valid-attachments": none}))
    assert not runtime.agent.attached


@pytest.mark.parametrize("other", [[], [{"containerID": "other", "ifname": "eth0"}]], ids=["alone", "beside another"])
@pytest.mark.parametrize("broken", [{"containerID": "web"}, {"containerID": None, "ifname": "eth0"}, None, "web"])
def test_collection_with_a_broken_list_deletes_nothing(runtime: Runtime, broken: object, other: list[object]) -> None:
    """One entry that cannot be read makes the whole list unreadable: it may be of the container that is here."""
    runtime.call("ADD", conf())
    given = conf("1.1.0", **{"cni.dev/valid-attachments": [*other, broken]})
    assert runtime.fail("GC", given)["code"] == 7
    assert runtime.agent.attached


def test_collection_goes_on_past_errors(runtime: Runtime) -> None:
    """Everything that can be removed is removed, and the errors are reported together."""
    for container in ("a", "b", "c"):
        runtime.call("ADD", conf(), CNI_CONTAINERID=container)
    runtime.agent.fails["detach a"] = KernelError("delete link: busy", 16)
    runtime.agent.fails["detach c"] = KernelError("delete link: no memory", 12)
    failed = runtime.fail("GC", conf("1.1.0", **{"cni.dev/valid-attachments": []}))
    assert "of a: delete link: busy" in failed["msg"]
    assert "of c: delete link: no memory" in failed["msg"]
    assert set(runtime.agent.attached) == {("a", "eth0"), ("c", "eth0")}


def test_status_follows_the_pool(runtime: Runtime) -> None:
    """No output while there are addresses, code 50 when they are gone or the network is."""
    assert runtime.call("STATUS", conf("1.1.0"), CNI_CONTAINERID="", CNI_IFNAME="", CNI_NETNS="") is None
    runtime.agent.left = 0
    assert runtime.fail("STATUS", conf("1.1.0"))["code"] == 50
    assert runtime.fail("STATUS", {**conf("1.1.0"), "name": "other"})["code"] == 50


def test_version_is_answered(runtime: Runtime) -> None:
    """VERSION needs nothing on stdin."""
    assert runtime.call("VERSION", b"{")["supportedVersions"] == list(VERSIONS)


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"CNI_COMMAND": ""}, "CNI_COMMAND"),
        ({"CNI_COMMAND": "EAT"}, "EAT"),
        ({"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": ""}, "CNI_CONTAINERID CNI_NETNS CNI_IFNAME"),
        ({"CNI_CONTAINERID": "../etc"}, "../etc"),
        ({"CNI_IFNAME": "sixteen-letters0"}, "sixteen-letters0"),
        ({"CNI_IFNAME": "a/b"}, "a/b"),
        ({"CNI_IFNAME": ".."}, ".."),
    ],
)
def test_wrong_environment_is_code_4(runtime: Runtime, environment: dict[str, str], part: str) -> None:
    """The message names every variable that is missing, or the value that is wrong."""
    failed = runtime.fail("ADD", conf(), **environment)
    assert failed["code"] == 4
    assert part in failed["msg"]


def test_variable_that_is_not_utf_8_is_named(runtime: Runtime) -> None:
    """The result could not repeat it."""
    stdin = json.dumps(conf()).encode()
    status, answer = runtime.raw(b"CNI_COMMAND=ADD\0CNI_NETNS=/run/\xff\0CNI_IFNAME=eth0\0\0" + stdin)
    failed = json.loads(answer)
    assert (status, failed["code"], failed["msg"]) == (400, 4, "CNI_NETNS is not UTF-8")


def test_namespace_of_the_runtime_is_refused(runtime: Runtime) -> None:
    """Code 8, unless CNI_NETNS_OVERRIDE allows it."""
    own = {"LINKSPAN_SELF_NETNS": str(Path("/proc/self/ns/net").stat().st_ino)}
    assert runtime.fail("ADD", conf(), **own)["code"] == 8
    assert not runtime.agent.attached
    runtime.call("ADD", conf(), CNI_NETNS_OVERRIDE="1", **own)
    assert runtime.agent.attached


@pytest.mark.parametrize(
    "environment",
    [
        {"LINKSPAN_NETNS_FD": "", "LINKSPAN_NETNS_ERROR": "No such file or directory"},
        {"LINKSPAN_NETNS_FD": ""},
        {"LINKSPAN_NETNS_FD": "99999"},
        {"LINKSPAN_NETNS_FD": "../../../../run"},
    ],
)
def test_namespace_that_cannot_be_opened_is_code_8(runtime: Runtime, environment: dict[str, str]) -> None:
    """The path is in the message, and nothing is attached."""
    failed = runtime.fail("ADD", conf(), **environment)
    assert failed["code"] == 8
    assert "/run/netns/web" in failed["msg"]
    assert not runtime.agent.attached


def test_file_that_is_no_namespace_is_code_8(runtime: Runtime, tmp_path: Path) -> None:
    """A plain file and a FIFO, which must not make the agent wait for a writer."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for name in ("fifo", "file"):
        fd = os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK)
        assert runtime.fail("ADD", conf(), LINKSPAN_NETNS_FD=str(fd))["code"] == 8
        os.close(fd)


def test_no_descriptor_is_left_open(runtime: Runtime, added: dict[str, Any]) -> None:
    """Each call closes the namespace, also one that fails: an open one keeps a dead container's links."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    runtime.fail("ADD", conf())
    runtime.call("CHECK", conf("1.1.0", prevResult=added))
    runtime.fail("ADD", conf(), LINKSPAN_SELF_NETNS=str(Path("/proc/self/ns/net").stat().st_ino))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b"{",
        b'{"cniVersion":"1.0.0","name":"demo"',
        b"[]",
        b"null",
        b'{"cniVersion":"1.0.0","name":"d\xff"}',
        b'{"name":"demo","cniVersion":"1.0.0","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 500_000,
        b'{"name":"demo","cniVersion":"1.0.0","x":"' + b"y" * (1 << 20) + b'"}',
        b'{"name":"demo","cniVersion":"1.0.0"} {}',
        b"\0",
    ],
    ids=["empty", "cut", "cut late", "list", "null", "not utf-8", "deep", "deep cut", "huge", "two", "nul"],
)
@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_stdin_that_is_no_configuration_is_code_6(runtime: Runtime, command: str, stdin: bytes) -> None:
    """Cut off, not UTF-8, nested deeply, too large: an error object, and nothing is attached."""
    assert runtime.fail(command, stdin)["code"] == 6
    assert not runtime.agent.attached


def test_fault_of_ours_is_an_error_object_too(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that nobody foresaw becomes code 100, and its trace is in the log."""

    class Broken(FakeAgent):
        def free(self, network: str) -> int:
            raise ZeroDivisionError("by nothing")

    assert Runtime(Broken()).fail("STATUS", conf("1.1.0"))["code"] == 100
    assert "ZeroDivisionError" in caplog.text


def test_random_bytes_never_raise(runtime: Runtime) -> None:
    """The answer is 200 or an error object, whatever the body."""
    dice = random.Random(20)  # noqa: S311 - the same inputs each time
    block = b"CNI_COMMAND=ADD\0CNI_CONTAINERID=web\0CNI_NETNS=/x\0CNI_IFNAME=eth0\0CNI_ARGS=IP=10.244.0.2\0\0"
    body = block + json.dumps(conf(runtimeConfig={"ips": ["10.244.0.2"]}, prevResult={"ips": []})).encode()
    for _ in range(3000):
        mutated = bytearray(body)
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(mutated))
            mutated[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
        status, answer = runtime.raw(
            bytes(mutated[: dice.randrange(len(mutated))] if dice.random() < 0.3 else mutated)
        )
        assert status == 200 or json.loads(answer)["code"] > 0
