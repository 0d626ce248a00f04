"""Pods by containerd's CRI, as Kubernetes makes them, are on a linkspan network."""

from __future__ import annotations

import json
import re
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from support.polling import until
from support.runtimes.containerd_engine import IMAGE, Containerd
from support.runtimes.cri import Cri
from support.runtimes.virtual_host import VirtualHost, reaches, stop

pytestmark = pytest.mark.timeout(400)  # real engines are slow on a busy machine

NETWORK = "web"
CONF = f"/etc/cni/net.d/10-linkspan-{NETWORK}.conflist"


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    """Return a virtual host with an agent, the network, the installed plugin and a containerd."""
    with tempfile.TemporaryDirectory(prefix="lkc") as folder:
        host = VirtualHost(f"{Path(folder).name}-h1", Path(folder))
        try:
            host.start_agent()
            host.linkspan("network", "create", NETWORK, "--pool", "10.77.0.0/16")
            host.linkspan("install", "cni", "--network", NETWORK)
            yield Containerd(host)
        finally:
            host.close()


@pytest.fixture
def cri(containerd: Containerd) -> Iterator[Cri]:
    """Return the CRI; after each test remove all pods, and expect that nothing of them is left."""
    found = Cri(containerd.address, IMAGE)
    try:
        until(found.network_is_ready, "containerd has found the network", 60)
        yield found
        found.remove_all()
    finally:
        found.close()
    assert_clean(containerd.host)


def assert_clean(host: VirtualHost) -> None:
    """Nothing of a container is left: no endpoint, no address, no link, no namespace."""
    assert host.linkspan("endpoint", "list") == []
    assert host.linkspan("address", "check")["ok"] is True
    links = json.loads(host.run("ip", "-json", "link", "show", "type", "veth").stdout)
    assert [link["ifname"] for link in links if link] == []


def test_pods_reach_each_other_and_have_their_names(containerd: Containerd, cri: Cri) -> None:
    """The address that Kubernetes gets is the one that answers, and linkspan knows the pod by its name."""
    one, other = cri.run_pod("one"), cri.run_pod("other")
    container = cri.run_container(one, "sleep 1000000")
    assert cri.address(one).startswith("10.77.")
    assert reaches(cri, container, cri.address(other))
    (found,) = containerd.host.linkspan("endpoint", "show", "one")
    assert found["id"] == one
    assert found["addresses"] == [f"{cri.address(one)}/16"]
    assert found["labels"]["k8s.namespace"] == "default"


def test_a_host_port_leads_to_the_pod_while_it_lives(containerd: Containerd, cri: Cri) -> None:
    """A pod's hostPort answers; a second pod that wants it is refused by the first one's name, and leaves nothing."""
    pod = cri.run_pod("web", ports=[("tcp", 8080, 80)])
    cri.run_container(pod, "httpd -f -p 80 -h /etc")
    until(lambda: containerd.host.serves(8080), "it answers")
    with pytest.raises(grpc.RpcError, match=r"port 8080/tcp is in use by .*web"):
        cri.run_pod("late", ports=[("tcp", 8080, 80)])
    assert [e["name"] for e in containerd.host.linkspan("endpoint", "list")] == ["web"]
    cri.stop_pod(pod)
    assert not containerd.host.serves(8080)


def test_a_pod_s_annotations_limit_its_bandwidth(containerd: Containerd, cri: Cri) -> None:
    """Kubernetes' own annotations come as limits on the pod's link, one in each direction."""
    limits = {"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "10M"}
    cri.run_pod("slow", annotations=limits)
    (found,) = containerd.host.linkspan("endpoint", "show", "slow")
    shown = containerd.host.run("tc", "qdisc", "show", "dev", found["host_ifname"]).stdout
    assert re.search(r"tbf .* rate 20Mbit", shown), shown


def test_an_annotation_gives_a_pod_its_address_and_mac(containerd: Containerd, cri: Cri) -> None:
    """`linkspan/ip` and `linkspan/mac` are what the pod has; another that asks for it learns who has it."""
    wishes = {"linkspan/ip": "10.77.5.5", "linkspan/mac": "02:42:0a:4d:05:05", "linkspan/tier": "front"}
    pod = cri.run_pod("fixed", annotations=wishes)
    container = cri.run_container(pod, "sleep 1000000")
    assert cri.address(pod) == "10.77.5.5"
    assert "02:42:0a:4d:05:05" in cri.execute(container, "ip link show eth0")
    (found,) = containerd.host.linkspan("endpoint", "show", "fixed")
    assert found["labels"]["tier"] == "front"
    assert not {"ip", "mac"} & found["labels"].keys()
    with pytest.raises(grpc.RpcError, match=r"10\.77\.5\.5 .*in use by .*fixed"):
        cri.run_pod("second", annotations={"linkspan/ip": "10.77.5.5"})
    with pytest.raises(grpc.RpcError, match="nonsense"):
        cri.run_pod("third", annotations={"linkspan/ip": "nonsense"})
    assert len(containerd.host.linkspan("endpoint", "list")) == 1


@pytest.mark.parametrize("present", [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)])
def test_a_pods_resolver_settings_may_lack_any_part(
    containerd: Containerd, cri: Cri, present: tuple[int, ...]
) -> None:
    """Any of servers, searches and options may be missing; the pod's resolv.conf has the others."""
    values = {1: "192.0.2.54", 2: "c.example", 3: "ndots:3"}
    pod = cri.run_pod("resolving", dns=[(field, values[field]) for field in present])
    found = cri.execute(cri.run_container(pod, "sleep 1000000"), "cat /etc/resolv.conf")
    assert all((value in found) == (field in present) for field, value in values.items()), found


def test_a_chain_with_tuning_gives_a_pod_that_talks(containerd: Containerd, cri: Cri) -> None:
    """The MAC and MTU of the reference plugin tuning, which comes after linkspan, are the pod's, and packets pass."""
    host = containerd.host
    plain = host.run("cat", CONF).stdout
    chain = json.loads(plain)
    chain["plugins"].append({"type": "tuning", "mac": "02:11:22:33:44:55", "mtu": 1400})
    (host.folder / "chain").write_text(json.dumps(chain))
    try:
        host.run("cp", host.folder / "chain", CONF)
        until(lambda: "tuning" in cri.network_told(), "containerd has read the chain")
        pod = cri.run_pod("tuned")
        container = cri.run_container(pod, "sleep 1000000")
        shown = cri.execute(container, "ip link show eth0")
        assert "02:11:22:33:44:55" in shown
        assert "mtu 1400" in shown
        assert reaches(cri, container, "10.77.0.1")
        host.run("ping", "-c2", "-W5", cri.address(pod))
    finally:
        (host.folder / "plain").write_text(plain)
        host.run("cp", host.folder / "plain", CONF)
        until(lambda: "tuning" not in cri.network_told(), "containerd has read the configuration")


def test_stop_and_remove_are_two_ends_of_one_pod(containerd: Containerd, cri: Cri) -> None:
    """Stopping frees the address at once; its second DEL, and a removal, take nothing from a pod that came after."""
    first = cri.run_pod("first", annotations={"linkspan/ip": "10.77.6.6"})
    cri.stop_pod(first)
    assert containerd.host.linkspan("endpoint", "list") == []
    second = cri.run_pod("second", annotations={"linkspan/ip": "10.77.6.6"})
    cri.stop_pod(first)
    cri.remove_pod(first)
    assert [e["id"] for e in containerd.host.linkspan("endpoint", "list")] == [second]


def test_containerd_is_killed_and_comes_back(containerd: Containerd, cri: Cri) -> None:
    """Pods run on and talk meanwhile; afterwards they are known, can be removed, and new ones come."""
    one, other = cri.run_pod("one"), cri.run_pod("other")
    container = cri.run_container(one, "sleep 1000000")
    before = cri.address(other)
    containerd.kill()
    assert len(containerd.host.linkspan("endpoint", "list")) == 2
    containerd.host.run("ping", "-c2", "-W5", before)  # fails where nothing comes back
    containerd.start()
    until(cri.network_is_ready, "containerd has found the network", 60)
    assert cri.address(other) == before
    assert reaches(cri, container, before)
    cri.run_pod("new")
    assert len(containerd.host.linkspan("endpoint", "list")) == 3


def test_the_agent_is_down_when_pods_come_and_go(containerd: Containerd, cri: Cri) -> None:
    """A starting pod is refused with the reason; a stopped one is released before the agent is ready again."""
    pod = cri.run_pod("gone")
    containerd.host.stop_agent()
    with pytest.raises(grpc.RpcError, match="is `linkspan agent` running"):
        cri.run_pod("refused")
    cri.stop_pod(pod)
    containerd.host.start_agent()
    assert containerd.host.linkspan("endpoint", "list") == []


def test_the_agent_is_killed_while_pods_start(containerd: Containerd, cri: Cri) -> None:
    """Each pod is there or is refused; once they are stopped nothing is left of either."""

    def tried(n: int) -> str:
        try:
            return cri.run_pod(f"p{n}")
        except grpc.RpcError:
            return ""

    host = containerd.host
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(tried, n) for n in range(8)]
        until(lambda: any(f.done() for f in running), "the first pod is there", 60)
        assert host.agent is not None
        stop(host.agent, signal.SIGKILL)
        pods = {found for one in running if (found := one.result())}
    host.start_agent()
    assert pods <= {e["id"] for e in host.linkspan("endpoint", "list")}
    cri.remove_all()
    assert_clean(host)


def test_a_network_is_deleted_while_the_runtime_knows_it(containerd: Containerd, cri: Cri) -> None:
    """A pod of it is refused with the network's name; made again, it serves again without a change at the runtime."""
    host = containerd.host
    host.linkspan("network", "delete", NETWORK)
    with pytest.raises(grpc.RpcError, match=f"network '?{NETWORK}'? does not exist"):
        cri.run_pod("lost")
    host.linkspan("network", "create", NETWORK, "--pool", "10.77.0.0/16")
    assert cri.address(cri.run_pod("found")).startswith("10.77.")


def test_the_host_restarts(containerd: Containerd, cri: Cri) -> None:
    """After a reboot nothing of the old pods is held, and pods of the same names come up again."""
    host = containerd.host
    pods = [cri.run_pod(f"p{n}", ports=[("tcp", 8090 + n, 80)]) for n in range(2)]
    addresses = {cri.address(pod) for pod in pods}
    assert len(addresses) == 2
    containerd.kill()
    host.reboot()
    host.start_agent()
    assert host.linkspan("endpoint", "list") == []
    containerd.start()
    until(cri.network_is_ready, "containerd has found the network", 60)
    cri.remove_all()
    assert_clean(host)
    again = [cri.run_pod(f"p{n}", ports=[("tcp", 8090 + n, 80)]) for n in range(2)]
    assert len({cri.address(pod) for pod in again}) == 2


def test_many_pods_at_once_leave_nothing(containerd: Containerd, cri: Cri) -> None:
    """Eight at a time, each started and removed (the fixture checks what is left)."""

    def lived(n: int) -> None:
        pod = cri.run_pod(f"m{n}")
        cri.stop_pod(pod)
        cri.remove_pod(pod)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lived, range(24)))
