"""Kubernetes' container runtime interface, as far as tests need it: a gRPC client with its messages written by hand.

A message is a list of (field, value) by the numbers of runtime/v1/api.proto, and an answer a dict of lists by them,
so no generated code is needed (protobuf.dev, Encoding: only varints and fields with a length occur).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

import grpc

Value = int | str | bytes | list[tuple[int, "Value"]]
Message = list[tuple[int, Value]]
SERVICE = "/runtime.v1.RuntimeService"
PROTOCOLS = {"tcp": 0, "udp": 1, "sctp": 2}


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def encoded(message: Message) -> bytes:
    """Return a message as it goes over the wire."""
    found = b""
    for field, value in message:
        if isinstance(value, int):
            found += _varint(field << 3) + _varint(value)
        else:
            content = encoded(value) if isinstance(value, list) else value
            content = content.encode() if isinstance(content, str) else content
            found += _varint(field << 3 | 2) + _varint(len(content)) + content
    return found


def decoded(content: bytes) -> dict[int, list[bytes | int]]:
    """Return the fields of a message; an inner message is bytes still."""
    found: dict[int, list[bytes | int]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = content[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while at < len(content):
        key = varint()
        if key & 7 == 0:
            found.setdefault(key >> 3, []).append(varint())
        else:
            assert key & 7 == 2, f"wire type {key & 7}"
            size = varint()
            found.setdefault(key >> 3, []).append(content[at : at + size])
            at += size
    return found


def text(answer: dict[int, list[bytes | int]], field: int) -> str:
    """Return a field that is a string, "" where it is missing."""
    value = answer.get(field, [b""])[0]
    assert isinstance(value, bytes)
    return value.decode()


def inner(answer: dict[int, list[bytes | int]], field: int) -> dict[int, list[bytes | int]]:
    """Return a field that is a message."""
    value = answer.get(field, [b""])[0]
    assert isinstance(value, bytes)
    return decoded(value)


def _pairs(values: Mapping[str, str], field: int) -> Message:
    return [(field, [(1, key), (2, value)]) for key, value in values.items()]


class Cri:
    """The CRI of one containerd, by its socket; a refusal is a grpc.RpcError with containerd's own words."""

    def __init__(self, socket: Path, image: str) -> None:
        # Go's HTTP/2 server refuses the path of a socket as an authority.
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=[("grpc.default_authority", "localhost")])
        self._image = image
        self._configs: dict[str, Message] = {}

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def call(self, verb: str, message: Message) -> dict[int, list[bytes | int]]:
        """Make one call; waits for a server that is not up yet."""
        method = self._channel.unary_unary(f"{SERVICE}/{verb}", encoded, decoded)
        return method(message, timeout=60, wait_for_ready=True)  # type: ignore[no-any-return]

    def network_is_ready(self) -> bool:
        """Return whether the runtime is up and has found a network for pods."""
        try:
            status = inner(self.call("Status", []), 1)
        except grpc.RpcError:  # it answers so before it is initialized
            return False
        conditions = [decoded(c) for c in status.get(1, []) if isinstance(c, bytes)]
        return any(text(one, 1) == "NetworkReady" and one.get(2) == [1] for one in conditions)

    def network_told(self) -> str:
        """Return what the runtime has read of the networks' configurations, as JSON."""
        pairs = [decoded(pair) for pair in self.call("Status", [(1, 1)]).get(2, []) if isinstance(pair, bytes)]
        return next((text(pair, 2) for pair in pairs if text(pair, 1) == "cniconfig"), "")

    def run_pod(
        self,
        name: str,
        ports: Iterable[tuple[str, int, int]] = (),
        annotations: Mapping[str, str] | None = None,
        dns: Message | None = None,
    ) -> str:
        """Run a pod's sandbox, with ports (protocol, host's, container's), and return its id.

        ``dns`` is its DNSConfig: 1 a server, 2 a search domain, 3 an option.
        """
        config: Message = [(1, [(1, name), (2, f"uid-{name}"), (3, "default")])]
        config += [(4, dns)] if dns is not None else []
        config += [(5, [(1, PROTOCOLS[p]), (2, inside), (3, outside)]) for p, outside, inside in ports]
        config += _pairs(annotations or {}, 7)
        pod = text(self.call("RunPodSandbox", [(1, config)]), 1)
        self._configs[pod] = config
        return pod

    def address(self, pod: str) -> str:
        """Return the address that the runtime reports to Kubernetes."""
        return text(inner(inner(self.call("PodSandboxStatus", [(1, pod)]), 1), 5), 1)

    def run_container(self, pod: str, command: str) -> str:
        """Start a container in a pod and return its id."""
        config: Message = [(1, [(1, "main")]), (2, [(1, self._image)]), *((3, word) for word in shlex.split(command))]
        container = text(
            self.call("CreateContainer", [(1, pod), (2, config), (3, self._configs[pod])]), 1
        )
        self.call("StartContainer", [(1, container)])
        return container

    def execute(self, container: str, command: str) -> str:
        """Run a command in a container to its end and return what it printed."""
        answer = self.call("ExecSync", [(1, container), *((2, word) for word in shlex.split(command)), (3, 30)])
        assert answer.get(3, [0]) == [0], f"{command} ended with {answer.get(3)}: {text(answer, 1)}{text(answer, 2)}"
        return text(answer, 1)

    def stop_pod(self, pod: str) -> None:
        """End a pod's processes and take its network away."""
        self.call("StopPodSandbox", [(1, pod)])

    def remove_pod(self, pod: str) -> None:
        """Remove a pod."""
        self.call("RemovePodSandbox", [(1, pod)])

    def pods(self) -> list[str]:
        """Return the ids of all pods."""
        found = [decoded(p) for p in self.call("ListPodSandbox", []).get(1, []) if isinstance(p, bytes)]
        return [text(one, 1) for one in found]

    def remove_all(self) -> None:
        """Stop and remove all pods."""
        for pod in self.pods():
            self.stop_pod(pod)
            self.remove_pod(pod)
