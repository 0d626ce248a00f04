"""CNI plugin that a runtime executes if linkspan_cni.c could not be compiled: the same program.

It runs as ``python3 -I -S linkspan_cni.py``, once for each container. So it imports only parts of the
interpreter (and ``_socket``), and finds the three strings that it needs of the configuration by itself. Wire,
queue and messages are those of linkspan_cni.c; one test suite runs against both.
"""

# ruff: noqa: SIM105, SLF001 - contextlib and os would be imported for this alone
import _signal  # type: ignore[import-not-found]  # the module signal costs an enum for each signal
import _socket
import posix
import time

LIMIT = 1 << 20
ROOM = 256 << 10
ANSWER = 4 << 20
COMMANDS = (b"ADD", b"CHECK", b"DEL", b"GC", b"STATUS", b"VERSION")
NEEDED = {b"ADD": 4, b"CHECK": 4, b"DEL": 3, b"GC": 1, b"STATUS": 1}  # number of VARIABLES
VARIABLES = (b"CNI_COMMAND", b"CNI_CONTAINERID", b"CNI_IFNAME", b"CNI_NETNS")
VERSIONS = (b"0.3.1", b"0.4.0", b"1.0.0", b"1.1.0")
ROOMS = {b"cniVersion": 15, b"name": 131, b"socket": 107}
PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
SIGNS = PLAIN + b"!\"#$%&'()*+,;<=>?@[\\]^`{|}~"
UNFIT = "has a socket, name or cniVersion that is too long or has a \\ in it"
DOWN = b"is `linkspan agent` running? `systemctl status linkspan` shows it"
SPACE = b" \t\r\n"


class Refused(Exception):
    """An error to answer: code, message, details."""


class Silence(Exception):
    """The agent gave no complete answer; has the reason."""


def on_alarm(_number: int, _frame: object) -> None:
    """Interrupt a blocking call."""
    raise TimeoutError(0, "no answer in time")


def reason(error: OSError) -> bytes:
    """Return the cause as text."""
    return (posix.strerror(error.errno) if error.errno else str(error.strerror)).encode()


def quoted(text: bytes) -> bytes:
    """Return the text as a JSON string."""
    out = b""
    for byte in text:
        if byte < 0x20 or byte in b'"\\\x7f':
            out += b"\\u%04x" % byte
        else:
            out += b"%c" % byte if byte < 0x80 else b"?"  # JSON is UTF-8, and these bytes may not be
    return b'"%s"' % out


def put(fd: int, text: bytes) -> None:
    """Write everything."""
    while text:
        text = text[posix.write(fd, text) :]


def decoded(text: bytes, longest: int) -> bytes | None:
    """Return the content of the quotes of a JSON string; None if it does not fit or has other escapes."""
    head, *escaped = text.split(b"\\\\")
    for part in (head, *escaped):
        for after in part.split(b"\\")[1:]:
            if after[:1] not in (b'"', b"/"):
                return None
    text = b"\\".join(part.replace(b"\\", b"") for part in (head, *escaped))
    return None if b"\0" in text or len(text) > longest else text


def scan(text: bytes, found: dict[bytes, bytes] | None) -> str:
    """Find the wanted strings of the object's top level; return the text's fault, or ''."""
    at, end = len(text) - len(text.lstrip(SPACE)), len(text)
    if text[at : at + 1] != b"{":
        return "is not a JSON object"
    depth, value, key = 0, False, b""
    while at < end:
        sign = text[at]
        if sign == 0x22:  # "
            start = at = at + 1
            while at < end and text[at] != 0x22:
                at += 2 if text[at] == 0x5C else 1  # a backslash
            if at >= end:
                return "is cut off within a string"
            if depth == 1 and found is not None:
                if not value:
                    key = decoded(text[start:at], 15) or b""
                elif key not in ROOMS:
                    pass
                elif (string := decoded(text[start:at], ROOMS[key])) is None:
                    return UNFIT
                else:
                    found[key] = string
        elif sign in b"{[":
            depth += 1
        elif sign in b"}]":
            depth -= 1
            if not depth:
                return "has text after its end" if text[at + 1 :].lstrip(SPACE) else ""
        elif depth == 1 and sign in b":,":
            value = sign == 0x3A
        at += 1
    return "is cut off"


def read_conf() -> bytes:
    """Read stdin to its end, or to one byte past the limit."""
    parts, room = [], LIMIT + 1
    while room and (part := posix.read(0, room)):
        parts.append(part)
        room -= len(part)
    return b"".join(parts)


def check(command: bytes, values: list[bytes]) -> None:
    """Check the environment; raise Refused."""
    needed = zip(VARIABLES, values[: NEEDED.get(command, 1)], strict=False)
    missing = [name for name, value in needed if not value]
    if missing:
        hint = b"the runtime sets them for each call"
        raise Refused(4, b"missing in the environment: " + b" ".join(missing), hint)
    if command not in COMMANDS:
        hint = b"use ADD, CHECK, DEL, GC, STATUS or VERSION"
        raise Refused(4, b"unknown CNI_COMMAND " + command, hint)
    if NEEDED[command] > 1 and not is_name(values[1]):
        hint = b"letters, digits, _ . -, at most 128"
        raise Refused(4, b"CNI_CONTAINERID %s is no container id" % values[1], hint)
    if NEEDED[command] > 1 and (values[2].strip(SIGNS) or len(values[2]) > 15 or values[2] in (b".", b"..")):
        hint = b"1 to 15 characters, eth0 for example"
        raise Refused(4, b"CNI_IFNAME %s is no interface name" % values[2], hint)


def is_name(text: bytes) -> bool:
    """Return whether it is a valid name for container ids and networks."""
    return 0 < len(text) <= 128 and text[0] not in b"_.-" and not text.translate(None, PLAIN)


def packed(conf: bytes, namespace: bytes) -> bytes:
    """Return the whole request; the namespace stays open for as long as this program runs."""
    block = b"".join(b"%s=%s\0" % item for item in posix.environ.items() if item[0].startswith(b"CNI_"))
    if namespace:
        try:
            fd = posix.open(namespace, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOCTTY)
            block += b"LINKSPAN_NETNS_FD=%d\0" % fd
        except OSError as error:
            block += b"LINKSPAN_NETNS_ERROR=%s\0" % reason(error)
    block += b"LINKSPAN_SELF_NETNS=%d\0\0" % posix.stat("/proc/self/ns/net").st_ino
    if len(block) > ROOM - 120:
        raise Refused(4, b"the CNI_* variables are larger than 256 KiB", b"")
    return b"POST /cni HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s%s" % (len(block) + len(conf), block, conf)


def post(path: bytes, request: bytes) -> tuple[int, bytes]:
    """Return the status of a complete answer and its body; raise Silence."""
    answer = b""
    try:
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        connection.connect(path)
        try:
            connection.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have answered before it read everything
        while len(answer) < ANSWER and (part := connection.recv(65536)):
            answer += part
        connection.close()
    except OSError as error:
        raise Silence(reason(error)) from None
    head, _, body = answer.partition(b"\r\n\r\n")
    status, lines = head[9:12], head.lower().split(b"\r\n")
    lengths = [line[15:].strip() for line in lines if line.startswith(b"content-length:")]
    known = head[:9] in (b"HTTP/1.0 ", b"HTTP/1.1 ") and status.isdigit()
    if not known or lengths[:1] != [b"%d" % len(body)]:
        raise Silence(b"it closed the connection before its answer was whole")
    if scan(body, None) if body else status != b"200":
        raise Silence(b"HTTP status %s without a CNI answer" % status)
    return int(status), body


def enqueue(path: bytes, entry: tuple[bytes, bytes, bytes], now: int) -> bytes:
    """Leave a removal for the agent's next start; return the file's path, or raise OSError."""
    fd = posix.open("/proc/sys/kernel/random/boot_id", posix.O_RDONLY)
    boot = posix.read(fd, 36)
    posix.close(fd)
    folder = path[: path.rfind(b"/") + 1] + b"queue/"
    at = 0
    while (at := folder.find(b"/", at + 1)) > 0:
        try:
            posix.mkdir(folder[:at], 0o700)
        except FileExistsError:
            pass
    name = b"%d-%d" % (now, posix.getpid())
    temporary, final = b"%s.%s.tmp" % (folder, name), b"%s%s.json" % (folder, name)
    container, ifname, network = entry
    text = b'{"container_id":"%s","ifname":%s,"network":"%s","boot_id":"%s","boottime_ns":%d}\n'
    try:
        fd = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600)
        put(fd, text % (container, quoted(ifname), network, boot, now))
        posix.fsync(fd)
        posix.close(fd)
        posix.rename(temporary, final)
    except OSError:
        try:
            posix.unlink(temporary)
        except OSError:
            pass
        raise
    return final


def removed(path: bytes, request: bytes, entry: tuple[bytes, bytes, bytes], now: int) -> tuple[int, bytes]:
    """Bring a DEL to the agent, or queue it."""
    try:
        return post(path, request)
    except Silence as silence:
        why = b"agent at %s: %s" % (path, silence.args[0])
    try:
        name = enqueue(path, entry, now)
    except OSError as error:
        raise Refused(11, b"%s; queue the removal: %s" % (why, reason(error)), DOWN) from None
    put(2, b"linkspan: %s; removal queued as %s\n" % (why, name))
    try:
        if post(path, request)[0] == 200:  # it may have started, and read the folder, before the file was there
            posix.unlink(name)
    except (Silence, OSError):
        pass
    return 200, b""


def answer(found: dict[bytes, bytes]) -> tuple[int, bytes]:
    """Return the status and the output; raise Refused. ``found`` is filled on the way."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    values = [posix.environ.get(name, b"") for name in VARIABLES]
    command = values[0]
    if command != b"VERSION":
        check(command, values)
    text = posix.environ.get(b"LINKSPAN_TIMEOUT", b"")
    patience = int(text) if text.isdigit() and int(text) else 120
    # Every blocking call ends in time; the timer repeats, because it may fire just before such a call.
    _signal.signal(_signal.SIGALRM, on_alarm)
    _signal.setitimer(_signal.ITIMER_REAL, 0.2 if command == b"VERSION" else patience, 1)
    try:
        conf = read_conf()
    except OSError:
        conf, wrong, code = b"", "cannot be read to its end", 5
    else:
        wrong, code = "is larger than 1 MiB" if len(conf) > LIMIT else scan(conf, found), 6
    if command == b"VERSION":  # it needs nothing from stdin, and waits at most 0.2 s for it
        supported = b",".join(quoted(version) for version in VERSIONS)
        return 200, b'{"cniVersion":%s,"supportedVersions":[%s]}\n' % (quoted(spoken(found)), supported)
    if wrong:
        hint = b"it must be one JSON object"
        raise Refused(
            7 if wrong == UNFIT else code, b"the network configuration on stdin " + wrong.encode(), hint
        )
    network = found.get(b"name", b"")
    if not is_name(network):
        hint = b"set it to a linkspan network"
        raise Refused(7, b'the configuration\'s name "%s" is not valid' % network, hint)
    path = posix.environ.get(b"LINKSPAN_SOCKET", b"") or found.get(b"socket") or b"/run/linkspan/agent.sock"
    if len(path) > 107:
        raise Refused(4, b"LINKSPAN_SOCKET %s is too long" % path, b"at most 107 bytes")
    request = packed(conf, values[3])
    if command == b"DEL":
        return removed(path, request, (values[1], values[2], network), now)
    try:
        return post(path, request)
    except Silence as silence:
        code = 50 if command == b"STATUS" else 11
        raise Refused(code, b"agent at %s: %s" % (path, silence.args[0]), DOWN) from None


def spoken(found: dict[bytes, bytes]) -> bytes:
    """Return the version of the answer: the requested one, if it is one of ours."""
    version = found.get(b"cniVersion", b"")
    return version if version in VERSIONS else b"1.1.0"


def main() -> int:
    """Run the program; return its exit status."""
    found: dict[bytes, bytes] = {}
    try:
        status, body = answer(found)
    except Refused as refused:
        code, message, details = refused.args
        values = quoted(spoken(found)), code, quoted(message[:999]), quoted(details)
        status, body = 0, b'{"cniVersion":%s,"code":%d,"msg":%s,"details":%s}\n' % values
    try:
        put(1, body)
    except OSError:
        return 1
    return status != 200


if __name__ == "__main__":
    posix._exit(main())
