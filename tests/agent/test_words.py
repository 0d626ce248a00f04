"""Messages of the command line for a new user."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from support.agent.agent_host import Host, World


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """Return a host with an agent."""
    world = World()
    made = Host(world)
    made.start()
    try:
        yield made
    finally:
        made.close()
        world.remove()


def test_a_new_network_is_told_with_what_was_chosen(host: Host) -> None:
    """The backend by the name that --backend takes, and how containers are connected."""
    words = ("network", "create")
    assert host.cli(*words, "flat", "--pool", "10.201.0.0/24", "--opt", "mode=routed") == (
        "network flat: backend bridge, mode=routed, pool 10.201.0.0/24, gateway 10.201.0.1\n"
    )
    assert host.cli(*words, "own", "--backend", "host") == "network own: backend host\n"


def test_a_pool_that_is_none_is_named_once(host: Host) -> None:
    """With the way to write one."""
    said = host.cli("network", "create", "bad", "--pool", "banana", code=1)
    assert said.count("banana") == 1
    assert "10.244.0.0/16" in said


def test_an_update_of_nothing_is_bad_usage(host: Host) -> None:
    """It says what can be updated; the help has no default that would change something."""
    said = host.cli("network", "update", "flat", code=2)
    assert "--add-pool" in said
    assert "default: 0" not in host.cli("network", "update", "--help")


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_a_runtimes_container_that_is_not_there_is_named(host: Host, runtime: str) -> None:
    """The error names the container, the reason and the fix, with and without the runtime installed."""
    said = host.cli("attach", f"{runtime}:nobody-has-this", "--network", "flat", code=1)
    assert f"{runtime} container 'nobody-has-this': " in said
    assert "; " in said


def test_a_port_at_an_address_of_another_host_is_refused(host: Host) -> None:
    """Nothing is left of the attempt, and the kernel's switch for a later address is named."""
    container = host.world.namespace()
    host.cli("network", "create", "demo", "--pool", "10.202.0.0/24")
    said = host.cli("attach", container, "--network", "demo", "--publish", "203.0.113.9:80:80", code=1)
    assert "cannot be published at 203.0.113.9: the host does not have this address" in said
    assert "ip_nonlocal_bind" in said
    assert host.json("endpoint", "list") == []


def test_the_version_is_asked_as_everywhere(host: Host) -> None:
    """--version is the command version, without an agent, too."""
    assert host.cli("--version") == host.cli("version")


def test_completion_is_there_and_does_not_fill_the_help(host: Host) -> None:
    """Its two options are not listed and work: for the shell that they are typed into."""
    assert "completion" not in host.cli("--help")
    typed = f"{sys.executable} -m linkspan.cli.main --show-completion && true"  # which keeps bash where it is
    done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout


def test_a_container_is_detached_by_the_name_that_is_listed(host: Host) -> None:
    """By its name or id; a container that is gone, or never existed, succeeds with a message of its own."""
    container = host.world.namespace()
    host.cli("network", "create", "named", "--pool", "10.205.0.0/24")
    host.attach(container, "named", name="k1")
    assert "k1 " in host.cli("endpoint", "list")
    assert host.cli("detach", "k1", "--network", "flat").startswith(
        "k1: 0 interfaces detached: it has eth0 of network named"
    )
    assert host.json("detach", "netns:k1")["detached"] == 0, "a namespace of that name is another container"
    assert host.cli("detach", "k1") == "k1: 1 interface detached\n"
    assert host.cli("detach", "k1").startswith("k1: 0 interfaces detached: it was detached already, at ")
    assert host.json("detach", "nobody")["detached"] == 0
    assert "no container on this host has this id or name" in host.cli("detach", "nobody")
    assert host.json("endpoint", "list") == []


def test_a_wrong_word_of_a_few_is_refused_with_those_that_there_are(host: Host) -> None:
    """The error lists the allowed words, also if the agent refuses the word, and not the command line."""
    said = host.cli("network", "create", "x", "--pool", "10.206.0.0/24", "--ipam", "blocks", code=1)
    assert said == "linkspan: create network x: --ipam 'blocks' is unknown; give block or exact\n"
    said = host.cli("network", "create", "x", "--pool", "10.206.0.0/24", "--expose", "podman,dokcer", code=1)
    assert said == "linkspan: create network x: --expose 'dokcer' is unknown; give cni, docker or podman\n"


def test_names_that_look_like_a_known_one_are_offered(host: Host) -> None:
    """The error offers the similar network or container; a name in DNS and the start of an id find it, too."""
    container = host.world.namespace()
    host.cli("network", "create", "frontend", "--pool", "10.207.0.0/24")
    id_ = "4f1c" + "0" * 60
    host.attach(container, "frontend", id=id_, name="shop-db-1", labels={"aliases": "db"})
    assert "did you mean frontend?" in host.cli("network", "show", "fronted", code=1)
    assert "did you mean shop-db-1?" in host.cli("endpoint", "show", "shop-db", code=1)
    assert "did you mean shop-db-1?" in host.cli("detach", "shop-db")
    for word in ("db", "db.frontend.internal", "4f1c", id_[:24], "shop-db-1@frontend"):
        assert host.json("endpoint", "show", word)[0]["id"] == id_
    assert host.json("detach", "db.frontend")["detached"] == 1
    host.cli("network", "delete", "frontend")


def test_a_container_s_interfaces_are_listed_together_and_in_order(host: Host) -> None:
    """Whichever was attached first, and whichever container was attached between."""
    one, two = host.world.namespace(), host.world.namespace()
    host.cli("network", "create", "many", "--pool", "10.208.0.0/24")
    for name, ifname in ((one, "eth10"), (two, "eth0"), (one, "eth2"), (one, "eth0")):
        host.attach(name, "many", ifname=ifname)
    listed = [(e["id"], e["ifname"]) for e in host.json("endpoint", "list", "--network", "many")]
    assert listed == [(one, "eth0"), (one, "eth2"), (one, "eth10"), (two, "eth0")]
    said = host.cli("network", "delete", "many", code=1)
    assert "has 4 endpoints" in said
    gone = host.json("network", "delete", "many", "--force")
    assert sorted((e["id"], e["ifname"]) for e in gone["cut_off"]) == sorted(listed)
    assert f"which cut off {one} on host" in host.cli("events", "-n", "1")


def test_a_reserved_address_in_use_stays_its_holder_s(host: Host) -> None:
    """The answer says who keeps it."""
    container = host.world.namespace()
    host.cli("network", "create", "kept", "--pool", "10.209.0.0/24")
    host.attach(container, "kept", name="web", ips=["10.209.0.9"])
    said = host.cli("address", "reserve", "kept", "10.209.0.8/29")
    assert "10.209.0.9 is in use: web keeps it until its detach" in said
    assert host.cli("address", "reserve", "kept", "10.209.0.16/29") == "10.209.0.16/29 of network kept is reserved\n"
    assert "has 1 endpoint (web)" in host.cli("network", "delete", "kept", code=1)
    host.cli("network", "delete", "kept", "--force")


def test_an_interface_more_on_a_network_is_asked_for_by_name(host: Host) -> None:
    """A second id of the same namespace makes no second interface by itself."""
    container = host.world.namespace()
    host.cli("network", "create", "once", "--pool", "10.210.0.0/24")
    host.attach(container, "once")
    said = host.cli("attach", container, "--network", "once", "--id", "other", code=1)
    assert f"container {container} is attached already, by eth0; give --ifname" in said
    host.cli("network", "delete", "once", "--force")


def test_the_last_events_are_asked_for_as_of_a_log(host: Host) -> None:
    """By number and by age, as lines for people and for scripts."""
    every = host.cli("events").splitlines()
    assert len(every) > 2
    assert host.cli("events", "-n", "2").splitlines() == every[-2:]
    assert host.cli("events", "--since", "1h").splitlines() == every
    assert host.cli("events", "--last", "0") == ""
    assert host.cli("events", "--since", "2200-01-01") == ""
    assert json.loads(host.cli("events", "-n", "1", "-o", "json"))["what"] in every[-1]
