r"""CNI: brings a runtime's calls to the agent and its answers back.

The shim sends ``KEY=VALUE\0...\0\0`` and then its stdin. The status of the HTTP answer becomes its exit
status: 200 is 0, all else 1. The body is what it prints, a result or CNI's error object.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from typing import Protocol

from linkspan.core.errors import Denied, LinkspanError, NotFound
from linkspan.core.model import Endpoint, Network
from linkspan.kernel.io.namespaces import CLONE_NEWNET, NS_GET_NSTYPE
from linkspan.runtimes.base import HostAgent
from linkspan.runtimes.cni import cni_conf, cni_foreign, cni_result
from linkspan.runtimes.cni.cni_conf import LABEL, Call, Environment
from linkspan.runtimes.cni.cni_types import (
    CONFIGURATION,
    DIFFERS,
    INTERNAL,
    NAMESPACE,
    NOT_AVAILABLE,
    UNKNOWN_CONTAINER,
    Failure,
)

log = logging.getLogger("linkspan.runtimes.cni")


class Chain(Protocol):
    """Follower of the changes that later plugins of a chain make to an endpoint (`endpoints/tuning.py`)."""

    def follow(self, endpoint: Endpoint, namespace_fd: int) -> None:
        """Let the endpoint adopt their changes from now on; the descriptor stays the caller's."""

    async def told(self, endpoint: Endpoint, namespace_fd: int, hardware: str, mtu: int) -> Endpoint:
        """Adopt the MAC and the MTU of the chain's own result, and return the endpoint."""


class Cni:
    """Answers calls of the shim."""

    def __init__(self, agent: HostAgent, chain: Chain) -> None:
        self._agent = agent
        self._chain = chain

    async def handle(self, body: bytes, pid: int, uid: int = 0) -> tuple[int, bytes]:
        """Answer a call of the shim with this process and user id: HTTP status and body. Never raises an Exception."""
        block, _, stdin = body.partition(b"\0\0")
        try:
            if uid:
                raise Denied(f"user {uid} may not change networks", "a runtime calls its CNI plugin as root")
            return 200, await self._answer(block, stdin, pid)
        except Failure as error:
            failed = error
        except LinkspanError as error:
            failed = cni_result.failure(error)
        except Exception as error:  # the edge: a runtime always gets an error object
            log.exception("a CNI call failed because of a defect in linkspan")
            hint = "this is a defect in linkspan; the agent's log has the traceback"
            failed = Failure(INTERNAL, f"{type(error).__name__}: {error}", hint)
        return 400, cni_result.error_object(failed, cni_conf.spoken(stdin))

    async def _answer(self, block: bytes, stdin: bytes, pid: int) -> bytes:
        environment = cni_conf.environment(block)
        command = environment.command
        if command == "VERSION":
            return cni_result.version()
        call = Call(environment, cni_conf.configuration(command, stdin))
        if command == "ADD":
            return await self._add(call, pid)
        if command == "DEL":
            await self._agent.detach(environment.id, environment.ifname, call.conf.name)
        elif command == "CHECK":
            await self._check(call, pid)
        elif command == "GC":
            await self._collect(call)
        else:
            await self._status(call)
        return b""

    async def _add(self, call: Call, pid: int) -> bytes:
        environment, conf = call.environment, call.conf
        request = cni_conf.request(call)
        network = await self._network(conf.name, CONFIGURATION)
        cni_foreign.refuse(conf, network)
        with _namespace(environment, pid) as fd:
            endpoint = await self._agent.attach(request, fd, environment.namespace)
            try:
                servers = self._agent.nameservers(endpoint)
                result = cni_result.result(conf, endpoint, network, environment.namespace, servers)
                self._chain.follow(endpoint, fd)
            except BaseException:
                # The runtime learns of no container here, so nobody would detach it.
                try:
                    await self._agent.detach(endpoint.id, endpoint.ifname, endpoint.network)
                except LinkspanError as error:
                    log.warning("detach %s, whose ADD has failed: %s", endpoint.id, error.message)
                raise
        return result

    async def _network(self, name: str, code: int) -> Network:
        async def found() -> Network:
            return self._agent.network(name)

        try:
            return await self._agent.with_news(found)
        except NotFound as error:
            raise Failure(code, error.message, error.hint) from error

    async def _check(self, call: Call, pid: int) -> None:
        environment, conf = call.environment, call.conf
        if conf.prev_result is None:
            hint = "the runtime must give the result of the ADD"
            what = f"CHECK of {environment.id} on network {conf.name} has no prevResult"
            raise Failure(CONFIGURATION, what, hint)
        await self._agent.recognise(environment.id, environment.ifname)
        endpoint = self._agent.endpoints().get((environment.id, environment.ifname))
        if endpoint is None or endpoint.network != conf.name:
            what = f"{environment.id} has no {environment.ifname} on network {conf.name}"
            raise Failure(UNKNOWN_CONTAINER, what, "`linkspan status` lists what is attached")
        with _namespace(environment, pid) as fd:
            if endpoint.netns and os.fstat(fd).st_ino != endpoint.netns:
                what = f"{environment.ifname} of {environment.id} is not in {environment.namespace}"
                raise Failure(NAMESPACE, what, "it was attached to another namespace; DEL and ADD it")
            found = cni_result.differences(conf.prev_result, endpoint)
            shown = cni_result.shown(conf.prev_result, endpoint)
            endpoint = await self._chain.told(endpoint, fd, shown.mac, shown.mtu)
            found += await self._agent.check(endpoint, fd, shown.mac, shown.mtu)
        if found:
            what = f"{environment.ifname} of {environment.id} differs from its attachment: {'; '.join(found)}"
            raise Failure(DIFFERS, what, "`linkspan diff` shows it; the agent repairs the host's part itself")

    async def _collect(self, call: Call) -> None:
        """Detach CNI's endpoints that the runtime no longer knows; a missing list collects nothing.

        A list that is null is Go's empty one, and counts as such.
        """
        if call.conf.attachments is None:
            return
        valid = {(one.container_id, one.ifname) for one in call.conf.attachments}
        for identity in valid:
            await self._agent.recognise(*identity)
        failures = []
        for identity, endpoint in list(self._agent.endpoints().items()):
            if endpoint.network != call.conf.name or identity in valid or endpoint.labels.get(LABEL) != "cni":
                continue
            try:
                await self._agent.detach(endpoint.id, endpoint.ifname, endpoint.network)
            except LinkspanError as error:
                named = error.within(f"detach {endpoint.ifname} of {endpoint.id}")
                failures.append(cni_result.failure(named))
        if failures:
            raise Failure(failures[0].code, "; ".join(one.message for one in failures), failures[0].details)

    async def _status(self, call: Call) -> None:
        name = call.conf.name
        await self._network(name, NOT_AVAILABLE)
        if self._agent.free(name) <= 0:
            hint = f"`linkspan address list --network {name}` shows who has them"
            raise Failure(NOT_AVAILABLE, f"network {name} has no address left", hint)


@contextlib.contextmanager
def _namespace(environment: Environment, pid: int) -> Iterator[int]:
    """Open the shim's descriptor of the container's namespace. Raises Failure with code 8."""
    path = environment.namespace
    if environment.namespace_error or environment.namespace_fd < 0:
        why = environment.namespace_error or "the plugin did not open it"
        raise Failure(NAMESPACE, f"network namespace {path}: {why}", "is the container still running?")
    try:
        # Without O_NONBLOCK the agent would wait for a writer if the path were a FIFO's.
        fd = os.open(f"/proc/{pid}/fd/{environment.namespace_fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        why = f"reopen it from plugin process {pid}: {error.strerror}"
        raise Failure(NAMESPACE, f"network namespace {path}: {why}", "was the plugin killed?") from error
    try:
        if not _is_namespace(fd):
            raise Failure(NAMESPACE, f"{path} is not a network namespace", "give /run/netns/NAME")
        if os.fstat(fd).st_ino == environment.own_namespace and not environment.may_be_own:
            hint = "a container needs a namespace of its own; CNI_NETNS_OVERRIDE=1 allows it"
            raise Failure(NAMESPACE, f"{path} is the network namespace of the runtime itself", hint)
        yield fd
    finally:
        os.close(fd)


def _is_namespace(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False
