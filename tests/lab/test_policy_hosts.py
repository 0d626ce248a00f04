"""Policies across hosts: labels of other hosts' containers decide, also over a restart while the store is away."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest

from linkspan.kernel.io.namespaces import open_namespace
from linkspan.lab import agents, record
from linkspan.policy import document
from support.agent.traffic import answers, asked, inside, serving
from support.lab.cluster_runs import ClusterRun
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: apt install etcd-server")

CONTAINERS = {"web": ("h1", "web"), "proxy": ("h2", "proxy"), "other": ("h3", "other"), "local": ("h1", "other")}
"""By name: the host, and the label app."""
WEB = """
policy: web
select: {labels: {app: web}}
ingress:
- from: [{labels: {app: proxy}}]
  ports: [80/tcp]
"""
OUT = """
policy: out
select: {name: other}
egress:
- to: [{host: h1, labels: {app: other}}]
"""
FIRST = 0.9
"""Seconds: after one (RFC 6298) TCP sends its first packet again, and one that was dropped would not be noticed."""


class PolicyRun(ClusterRun):
    """Three hosts, with a container or two on each that answers at two ports."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: dict[str, str] = {}
        self.servers = contextlib.ExitStack()

    def attach(self, name: str) -> None:
        """Attach a container with its label, and let it answer."""
        host, app = CONTAINERS[name]
        namespace = self.place(name)
        subprocess.run(["ip", "netns", "add", namespace], check=True)
        self.servers.callback(subprocess.run, ["ip", "netns", "delete", namespace], check=True)
        fd = open_namespace(f"/run/netns/{namespace}")
        try:
            body = {
                "id": name, "name": name, "network": "demo", "labels": {"app": app}, "namespace_fd": fd,
                "namespace_path": f"/run/netns/{namespace}",
            }  # fmt: skip
            made = self.call(host, "POST", "/v1/attach", body)
        finally:
            os.close(fd)
        self.addresses[name] = made["addresses"][0].partition("/")[0]
        for port in (80, 81):
            self.servers.enter_context(serving(namespace, port))

    def place(self, name: str) -> str:
        """Return a container's namespace."""
        return f"{self.name}-{name}"

    def apply(self, host: str, text: str) -> None:
        """Apply policies on a host, and wait until all have them."""
        policies = document.parsed(text, "file.yaml").policies
        self.call(host, "PUT", "/v1/policies", {"policies": policies})
        names = {policy.name for policy in policies}
        for one in ("h1", "h2", "h3"):
            until(lambda one=one: names <= {p["name"] for p in self.call(one, "GET", "/v1/policies")}, f"{one} has it")

    def reach(self, source: str, target: str, port: int = 80) -> bool:
        """Return whether a container answers another one at once: who should not is not waited for."""
        return answers(self.place(source), self.addresses[target], port)

    def allowed(self, source: str, target: str) -> bool:
        """Return whether a container answers another one's first packet, though this machine may be busy."""
        with contextlib.suppress(OSError):
            return asked(self.place(source), self.addresses[target], 80, seconds=FIRST) != ("", "")
        return False


@pytest.fixture(scope="module")
def cluster() -> Iterator[PolicyRun]:
    """Give three hosts with a VXLAN network and an etcd."""
    found = PolicyRun()
    try:
        found.run("up", "--backend vxlan --store etcd")
        for name in CONTAINERS:
            found.attach(name)
        until(lambda: found.reach("proxy", "web") and found.reach("other", "web"), "all reach web")
        yield found
    finally:
        found.servers.close()
        found.run("down")


@pytest.fixture(autouse=True)
def _clean(cluster: PolicyRun) -> Iterator[None]:
    yield
    for policy in cluster.call("h1", "GET", "/v1/policies"):
        cluster.call("h1", "DELETE", f"/v1/policies/{policy['name']}")
    until(lambda: cluster.reach("other", "web", 81), "web is open again")


def test_labels_of_other_hosts_containers_decide(cluster: PolicyRun) -> None:
    """The receiver's host enforces ingress, the sender's egress; whoever asks gets the same answer."""
    cluster.apply("h3", WEB)
    until(lambda: not cluster.reach("other", "web"), "h1 refuses other")
    assert cluster.allowed("proxy", "web")
    assert not cluster.reach("proxy", "web", 81)
    assert not cluster.reach("local", "web")
    cluster.apply("h1", OUT)
    until(lambda: not cluster.reach("other", "proxy"), "h3 lets other out to local only")
    assert cluster.allowed("other", "local")
    for host in ("h1", "h2", "h3"):
        found = cluster.call(host, "GET", "/v1/policy/can?from=other&to=web&port=80/tcp")
        assert (found["allowed"], found["by"]) == (False, {"policy": "out", "line": 2})
        who = cluster.call(host, "GET", "/v1/policy/who-can?to=web")
        assert [(one["name"], one["host"], one["ports"]) for one in who] == [("proxy", "h2", ["80/tcp"])]


def test_a_host_reaches_its_own_containers_from_each_of_its_addresses(cluster: PolicyRun) -> None:
    """The answers say what the kernel does, on every host: another host's address is nobody whom the policy allows."""
    cluster.apply("h2", WEB)
    until(lambda: not cluster.reach("other", "web"), "h1 refuses other")
    own = {}
    for host in cluster.call("h2", "GET", "/v1/hosts"):
        texts = [*host["underlay"]["addresses"], *host["leases"][0]["host_address"]]
        own[host["name"]] = [text.partition("/")[0] for text in texts]
    gateway = cluster.call("h2", "GET", "/v1/networks")[0]["gateways"][0].partition("/")[0]
    for host, addresses in (("h1", [*own["h1"], gateway]), ("h3", own["h3"])):
        for address in addresses:
            with inside(f"{cluster.name}-{host}"), contextlib.suppress(OSError):
                end = (cluster.addresses["web"], 80)
                socket.create_connection(end, timeout=1, source_address=(address, 0)).close()
                assert host == "h1", address
                continue
            assert host == "h3", address
        for asked_at in ("h1", "h3"):
            answers_ = [cluster.call(asked_at, "GET", f"/v1/policy/can?from={one}&to=web&port=80") for one in addresses]
            assert [one["allowed"] for one in answers_] == [host == "h1"] * len(addresses), answers_


def test_a_label_that_changes_on_another_host_counts(cluster: PolicyRun) -> None:
    """Within a second, in both directions; and an established connection is cut."""
    cluster.apply("h1", WEB)
    until(lambda: not cluster.reach("other", "web"), "h1 refuses other")
    cluster.call("h3", "PATCH", "/v1/endpoints/other/labels", {"set": {"app": "proxy"}})
    until(lambda: cluster.reach("other", "web"), "the new label counts", 2 * SHARED)
    with inside(cluster.place("other")):
        client = socket.create_connection((cluster.addresses["web"], 80), timeout=10)
    with client:
        cluster.call("h3", "PATCH", "/v1/endpoints/other/labels", {"set": {"app": "other"}})
        until(lambda: not cluster.reach("other", "web"), "the old label counts", 2 * SHARED)


def test_a_policy_holds_over_a_restart_while_the_store_is_away(cluster: PolicyRun) -> None:
    """The agent knows no other host's containers then: those that were allowed still are, and nobody else is.

    It is killed as soon as it has answered.
    """
    cluster.call("h1", "PUT", "/v1/policies", {"policies": document.parsed(WEB, "file.yaml").policies})
    cluster.run("break", "h1", "agent-kill")
    cluster.run("break", "h1", "store-cut")
    try:
        lab = record.load(cluster.name)
        agents.start(lab, [lab.host("h1")])
        until(lambda: cluster.status("h1")["store"]["ok"] is False, "h1's agent is back, without its store")
        assert cluster.allowed("proxy", "web")
        assert not cluster.reach("other", "web")
    finally:
        cluster.run("mend", "h1")
    until(lambda: cluster.status("h1")["store"]["ok"], "h1 has its store")
    assert cluster.allowed("proxy", "web")
    assert not cluster.reach("other", "web")


def test_a_trace_names_the_policy_of_the_other_host(cluster: PolicyRun) -> None:
    """The refusing hop is on web's host, whoever traces."""
    cluster.apply("h1", WEB)
    until(lambda: not cluster.reach("other", "web"), "h1 refuses other")
    found = json.loads(cluster.exec("h2", "linkspan trace other web --port 80 -o json", code=3))
    assert "policy web line 2 refuses it" in json.dumps(found)


def test_hosts_without_policies_refuse_them(cluster: PolicyRun) -> None:
    """An agent of a version before policies would let everybody in: apply names its host."""
    old = {"id": "h9", "name": "h9", "version": "0.1.0"}
    (key,) = (key for key in cluster.keys("hosts/h1") if key.endswith("/hosts/h1"))
    cluster.etcdctl("put", f"{key.removesuffix('h1')}h9", given=json.dumps(old))
    until(lambda: any(one["name"] == "h9" for one in cluster.call("h1", "GET", "/v1/hosts")), "h1 knows h9")
    try:
        with pytest.raises(Exception, match="the agent of host h9 is of a version that enforces no policy"):
            cluster.apply("h1", WEB)
    finally:
        cluster.call("h1", "DELETE", "/v1/hosts/h9")
