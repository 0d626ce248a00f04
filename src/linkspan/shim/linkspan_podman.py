r"""netavark plugin that Podman executes: it brings the call to the agent and prints the agent's answer.

One POST /podman over the agent's unix socket: ``COMMAND=...\\0...\\0\\0``, then stdin. The plugin opens the
container's namespace, as the CNI plugin does (its wire is the same). It runs as ``python3 -I -S`` for each
container, so it imports only parts of the interpreter; json only if the agent is down, when a teardown is
left in its queue.
"""

# ruff: noqa: SIM105, SLF001 - contextlib and os would be imported for this alone
import _socket
import _struct
import posix
import sys
import time

SOCKET = b"/run/linkspan/agent.sock"
LIMIT = 1 << 20
PATIENCE = 120
DOWN = "is `linkspan agent` running? `systemctl status linkspan` shows it"
COMMANDS = ("create", "setup", "teardown", "info")


class Failed(Exception):
    """An error for Podman."""


def put(fd: int, text: bytes) -> None:
    """Write everything."""
    while text:
        text = text[posix.write(fd, text) :]


def read_all() -> bytes:
    """Read stdin to its end, or to one byte past the limit."""
    parts, room = [], LIMIT + 1
    while room and (part := posix.read(0, room)):
        parts.append(part)
        room -= len(part)
    return b"".join(parts)


def rootless() -> bool:
    """Return whether this is not root, or is root in a user namespace other than the machine's own."""
    if posix.geteuid():
        return True
    try:
        fd = posix.open("/proc/self/uid_map", posix.O_RDONLY)
    except FileNotFoundError:  # a kernel without user namespaces
        return False
    try:
        return posix.read(fd, 200).split() != [b"0", b"0", b"4294967295"]
    finally:
        posix.close(fd)


def post(path: bytes, request: bytes) -> tuple[int, bytes]:
    """Return the status of a complete answer, and its body. Raises OSError."""
    answer = b""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        # The kernel's own limit: with Python's, a full backlog would refuse instead of making us wait.
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, _struct.pack("ll", PATIENCE, 0))
        connection.connect(path)
        connection.settimeout(PATIENCE)
        connection.sendall(request)
        while part := connection.recv(65536):
            answer += part
    finally:
        connection.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if not head.startswith(b"HTTP/1.") or not head[9:12].isdigit() or [int(n) for n in lengths] != [len(body)]:
        raise OSError(0, "it closed the connection before its answer was whole")
    if not body and head[9:12] != b"200":  # an agent that has no records yet
        raise OSError(0, f"HTTP status {head[9:12].decode()}")
    return int(head[9:12]), body


def request(command: str, namespace: str, stdin: bytes) -> bytes:
    """Return the whole request; the namespace stays open for as long as this program runs."""
    block = b"COMMAND=%s\0" % command.encode()
    if namespace:
        try:
            block += b"LINKSPAN_NETNS_FD=%d\0" % posix.open(namespace, posix.O_RDONLY | posix.O_CLOEXEC)
        except OSError as error:
            block += b"LINKSPAN_NETNS_ERROR=%s\0" % str(error.strerror).encode()
        block += b"NETNS=%s\0" % namespace.encode(errors="surrogateescape")
    block += b"\0"
    head = b"POST /podman HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % (len(block) + len(stdin))
    return head + block + stdin


def enqueue(path: bytes, stdin: bytes, now: int) -> None:
    """Leave a teardown for the agent's next start. Raises OSError or Failed."""
    import json

    try:
        call = json.loads(stdin)
        network = call["network"]
        entry = {
            "container_id": call["container_id"],
            "ifname": call["network_options"]["interface_name"],
            "network": (network.get("options") or {}).get("network") or network["name"],
            "boottime_ns": now,
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(f"the call on stdin cannot be read: {error}") from None
    fd = posix.open("/proc/sys/kernel/random/boot_id", posix.O_RDONLY)
    entry["boot_id"] = posix.read(fd, 36).decode()
    posix.close(fd)
    folder = path.decode(errors="surrogateescape").rpartition("/")[0] + "/queue"
    try:
        posix.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    name = f"{now}-{posix.getpid()}"
    temporary = f"{folder}/.{name}.tmp"
    fd = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600)
    put(fd, json.dumps(entry).encode())
    posix.fsync(fd)
    posix.close(fd)
    posix.rename(temporary, f"{folder}/{name}.json")


def carried(command: str, namespace: str) -> tuple[int, bytes]:
    """Bring the call to the agent; return exit status and answer. Raises Failed."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if command not in COMMANDS:
        raise Failed("usage: {}, and a network namespace for setup and teardown".format("|".join(COMMANDS)))
    stdin = read_all() if command != "info" else b""
    if len(stdin) > LIMIT:
        raise Failed("the call on stdin is larger than 1 MiB")
    if rootless():
        raise Failed("rootless Podman has no access to the host's networks; run it as root (sudo podman)")
    path = posix.environ.get(b"LINKSPAN_SOCKET") or SOCKET
    try:
        status, body = post(path, request(command, namespace, stdin))
    except OSError as error:
        why = "agent at {}: {}".format(path.decode(errors="replace"), error.strerror or error)
        if command != "teardown":
            raise Failed(f"{why}; {DOWN}") from None
        try:
            enqueue(path, stdin, now)
        except OSError as failure:
            raise Failed(f"{why}; queue the removal: {failure.strerror}") from None
        put(2, b"linkspan: %s; the removal is queued\n" % why.encode())
        return 0, b""
    return status != 200, body


def main() -> int:
    """Run the program; return its exit status."""
    words = [*sys.argv[1:], "", ""]
    try:
        status, body = carried(words[0], words[1])
    except Failed as failed:
        text = "".join(c if " " <= c <= "~" and c not in '"\\' else f"\\u{ord(c):04x}" for c in str(failed))
        status, body = 1, b'{"error": "linkspan: %s"}' % text.encode()
    put(1, body)
    return status


if __name__ == "__main__":
    posix._exit(main())
