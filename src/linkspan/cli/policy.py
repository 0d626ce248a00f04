"""`linkspan policy`: apply, list, show, delete, diff, staged, enforce, can, who-can, test."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import msgspec
import typer

from linkspan.api.client import Client, part
from linkspan.cli.output import DEFAULT_SOCKET, Format, Output, Socket, as_json, joined, say, table
from linkspan.core.errors import LinkspanError, NotFound, counted

if TYPE_CHECKING:
    from linkspan.policy.document import Document
    from linkspan.policy.model import Policy

app = typer.Typer(no_args_is_help=True, help="Policies: who may talk to whom, by labels.")

FOUND = 3
_MOVED = "it says the same at other lines, or in another file: traces, drops and answers would name those"
_FILES = "YAML files, folders of them, or - for the standard input."
Paths = Annotated[list[Path], typer.Argument(metavar="FILE...", help=_FILES)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The policy's name.")]
End = "A container's name, its address, an address outside, or the word outside."
Port = Annotated[str, typer.Option("--port", metavar="80/tcp", help="Only this port; default: any.")]


def _read(files: Sequence[Path]) -> Document:
    from linkspan.policy import document  # here: other commands need no YAML

    found = document.read(files)
    if found.unread:
        say(f"warning: not read, because only files *.yaml, *.yml and *.json are: {joined(found.unread)}", sys.stderr)
    return found


def _policies(files: Sequence[Path]) -> tuple[Policy, ...]:
    if not (found := _read(files).policies):
        raise NotFound(f"{joined(files)}: there is no policy in it", "a policy begins with policy: NAME")
    return found


@app.command()
def apply(
    file: Paths,
    stage: Annotated[bool, typer.Option("--stage", help="Only count what they would refuse (`staged`).")] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Record the policies of files, also Kubernetes' NetworkPolicy; other policies stay."""
    body = {"policies": msgspec.to_builtins(_policies(file)), "staged": stage}
    _applied(Client(socket).call("PUT", "/v1/policies", body), output, ", staged" if stage else "")


def _applied(found: dict[str, Any], output: Format, how: str = "") -> None:
    if output is Format.JSON:
        as_json(found)
        return
    for word in ("created", "changed", "same"):
        for name in found[word]:
            print(f"policy {name}: {'unchanged' if word == 'same' else word}{how}")
    for words in found["warnings"]:
        say(f"warning: {words}", sys.stderr)


@app.command("list")
def list_(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """List the policies in the order in which they count."""
    found = Client(socket).call("GET", "/v1/policies")
    if output is Format.JSON:
        as_json(found)
        return
    tiers = any(one.get("tier", "normal") != "normal" for one in found)
    rows = [
        (
            one["name"],
            *([one.get("tier", "normal")] if tiers else []),
            one["order"],
            _selected(one["select"]),
            *("-" if one[way] is None else len(one[way]) for way in ("ingress", "egress")),
            f"{one['file']}:{one['line']}" if one["file"] else "-",
        )
        for one in found
    ]
    columns = ("name", *(["tier"] if tiers else []), "order", "selects", "ingress rules", "egress rules", "from")
    table(columns, rows, "no policy yet: linkspan policy apply FILE")
    for words in dict.fromkeys(words for one in found for words in one["warnings"]):
        say(f"warning: {words}", sys.stderr)


def _selected(select: dict[str, Any]) -> str:
    words = [f"{key[:-1]} {'|'.join(select[key])}" for key in ("networks", "hosts", "names") if select.get(key)]
    words += [f"{key}={value}" for key, value in select.get("labels", {}).items()]
    for one in select.get("expressions", ()):
        words.append(" ".join([one["key"], one["operator"], "|".join(one.get("values", ()))]).rstrip())
    return ", ".join(words) or "everything"


@app.command()
def show(
    name: Name,
    staged: Annotated[bool, typer.Option("--staged", help="Its staged version.")] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Show a policy as its file would have it."""
    found = Client(socket).call("GET", f"/v1/policies/{part('policy', name)}{'?staged' if staged else ''}")
    if output is Format.JSON:
        as_json(found)
        return
    print(_printed(_policy(found)), end="")
    for one in found.get("names", ()):
        listed = ", ".join(f"{at['address']} ({counted(at['seconds'], 'second')})" for at in one["addresses"])
        print(f"# {one['name']} here, now: {listed or one['problem'] or 'no address is known'}")
    for words in found["warnings"]:
        say(f"warning: {words}", sys.stderr)


@app.command()
def delete(
    name: Name,
    staged: Annotated[bool, typer.Option("--staged", help="Only its staged version; what is enforced stays.")] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Delete a policy."""
    gone = Client(socket).call("DELETE", f"/v1/policies/{part('policy', name)}{'?staged' if staged else ''}")
    what = "not staged any more" if staged else "deleted"
    as_json(gone) if output is Format.JSON else print(f"policy {name} is {what}")


@app.command()
def staged(output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Show the staged policies, and what they would have refused on this host: from whom, to whom, how often."""
    found = Client(socket).call("GET", "/v1/policy/staged")
    if output is Format.JSON:
        as_json(found)
        return
    if not found["policies"]:
        say("no policy is staged: linkspan policy apply --stage FILE")
        return
    for one in found["policies"]:
        print(f"policy {one['name']} would be {one['change']}")
    keys = ("policy", "line", "from", "to", "port", "packets")
    rows = [[one[key] or "-" for key in keys] for one in found["refused"]]
    columns = ("refused by", "line", "from", "to", "port", "packets")
    table(columns, rows, "on this host nothing was seen that they would refuse")
    if found["more"]:
        say(f"{counted(found['more'], 'counted flow')} more, with at most as many packets each")
    if found["full"]:
        say("the kernel counts no more flows than these: what else would be refused is not known")
    if found["cuts"]:
        say(f"`policy enforce` would end {counted(found['cuts'], 'open connection')} of this host now")


@app.command()
def enforce(name: Name, output: Output = Format.TABLE, socket: Socket = DEFAULT_SOCKET) -> None:
    """Enforce a staged policy from now on."""
    _applied(Client(socket).call("POST", f"/v1/policy/staged/{part('policy', name)}/enforce"), output, ", enforced")


@app.command()
def diff(
    file: Annotated[list[Path], typer.Argument(metavar="FILE...", help=_FILES, show_default=False)] = [],  # noqa: B006
    staged: Annotated[
        bool, typer.Option("--staged", help="Instead of files, what `enforce` would change of each staged policy.")
    ] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Show what `apply` would change; exit 3 if anything would."""
    if bool(file) == staged:
        raise typer.BadParameter("give FILE, or --staged")
    client = Client(socket)
    if staged:
        wanted: Sequence[Policy] = [_policy(one) for one in client.call("GET", "/v1/policy/staged")["policies"]]
    else:
        wanted = _policies(file)
    known = {one["name"]: _policy(one) for one in client.call("GET", "/v1/policies")}
    changes = []
    for policy in wanted:
        before, after = _printed(known[policy.name]) if policy.name in known else "", _printed(policy)
        if known.get(policy.name) != policy:
            new = "staged" if staged else policy.file
            lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "recorded", new, lineterm="")
            what = "changed" if before else "created"
            changes.append({"policy": policy.name, "what": what, "diff": "\n".join(lines) or _MOVED})
    if output is Format.JSON:
        as_json(changes)
    else:
        for one in changes:
            print(f"policy {one['policy']} would be {one['what']}:\n{one['diff']}")
        if not changes:
            same = "what is staged is enforced already" if wanted else "no policy is staged"
            say(f"no change: {same if staged else 'the policies are recorded as in the file'}")
        _warn(client, wanted)
    if changes:
        raise typer.Exit(FOUND)


def _warn(client: Client, policies: Sequence[Policy]) -> None:
    """Print what `apply` would warn of; not to who may only read, nor where the agent is older."""
    with contextlib.suppress(LinkspanError):
        for words in client.call("POST", "/v1/policy/warnings", {"policies": msgspec.to_builtins(policies)}):
            say(f"warning: {words}", sys.stderr)


@app.command()
def can(
    source: Annotated[str, typer.Argument(metavar="A", help=End)],
    target: Annotated[str, typer.Argument(metavar="B", help=End)],
    port: Port = "",
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Say whether A may connect to B, and by which policy; exit 3 if not. It sends no packet."""
    asked = urlencode({"from": source, "to": target, "port": port})
    found = Client(socket).call("GET", f"/v1/policy/can?{asked}")
    if output is Format.JSON:
        as_json(found)
    else:
        what = "yes" if found["allowed"] else "no"
        at = f" ({joined(found['ports'])})" if found["ports"] and not port else ""
        say(f"{what}{at}: {found['why']}")
    if not found["allowed"]:
        raise typer.Exit(FOUND)


@app.command("who-can")
def who_can(
    target: Annotated[str, typer.Argument(metavar="A", help="A container's name or address.")],
    port: Port = "",
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """List who may connect to a container, and at which ports."""
    found = Client(socket).call("GET", f"/v1/policy/who-can?{urlencode({'to': target, 'port': port})}")
    if output is Format.JSON:
        as_json(found)
        return
    at = [f"{one.get('to', '')} {one.get('address', '')}".strip() or "-" for one in found]
    several = len(set(at)) > 1  # the container is in several networks
    rows = [
        (
            *(one[key] or "-" for key in ("name", "network", "host")),
            *([to] if several else []),
            joined(one["ports"]),
        )
        for one, to in zip(found, at, strict=True)
    ]
    columns = ("name", "network", "host", *(["to"] if several else []), "ports")
    asked = f" at {port}" if port else ""
    table(columns, rows, f"nobody may connect to {target}{asked}")


@app.command("test")
def run_tests(
    file: Paths,
    live: Annotated[
        bool, typer.Option("--live", help="Send packets from this host's containers, as policies are in force now.")
    ] = False,
    output: Output = Format.TABLE,
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Answer the tests in files, as if their policies were applied; exit 3 if one fails. Without --live no packet."""
    wanted = _read(file)
    if not wanted.cases:
        raise NotFound(f"{joined(file)}: there are no tests", "write them below tests: with from, to, port and expect")
    body = {key: msgspec.to_builtins(getattr(wanted, key)) for key in ("policies", "cases")}
    found = Client(socket).call("POST", "/v1/policy/test", {**body, "live": live})
    if output is Format.JSON:
        as_json(found)
    else:
        for one in found["failed"]:
            by = f" by policy {one['by']['policy']} line {one['by']['line']}" if one["by"] else ""
            at = f" at {one['port']}" if one["port"] else ""
            got = one.get("why") or f"expected {one['expected']}, got {one['got']}{by}"
            say(f"{_line(one)}: {one['from']} to {one['to']}{at}: {got}")
        for one in found["skipped"]:
            say(f"{_line(one)}: skipped: {one['why']}")
        skipped = len(found["skipped"])
        asked = found["cases"] - skipped
        say(f"{found['ok']} of {asked} tests pass" + (f", {skipped} skipped" if skipped else ""))
    if found["failed"]:
        raise typer.Exit(FOUND)


def _line(case: dict[str, Any]) -> str:
    return f"{case.get('file', '')} line {case['line']}".lstrip()  # a running agent may be older


def _policy(found: dict[str, Any]) -> Policy:
    from linkspan.policy.model import Policy

    own = {key: value for key, value in found.items() if key not in ("warnings", "names", "change")}
    return msgspec.convert(own, Policy)


def _printed(policy: Policy) -> str:
    from linkspan.policy import document

    return document.printed(policy)
