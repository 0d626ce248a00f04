"""`linkspan demo`: the tour."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from linkspan.backends import CROSSING
from linkspan.cli.address import NOT_WELL
from linkspan.cli.output import split, step
from linkspan.core.errors import Denied, Invalid

ONE_HOST = "bridge"


def demo(
    backend: Annotated[
        list[str],
        typer.Option(
            metavar="B",
            help=f"bridge: one host; {', '.join(CROSSING)}: three; all: each in turn.",
        ),
    ] = [ONE_HOST],  # noqa: B006 - typer's way
    keep: Annotated[bool, typer.Option("--keep", help="Keep the tour's objects, and show what to try.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Only remove what a tour has kept.")] = False,
    lang: Annotated[str, typer.Option("--lang", metavar="zh|en", help="The language; default: the locale's.")] = "",
) -> None:
    """Show how containers get a network, step by step, in namespaces that the tour makes."""
    from linkspan.core.translation import chosen
    from linkspan.demo import across, stage, tour  # rich takes long to import
    from linkspan.demo.language import Words

    known = (ONE_HOST, *CROSSING)
    wanted = list(known) if "all" in backend else split(backend)
    if unknown := [one for one in wanted if one not in known]:
        raise Invalid(f"there is no tour for backend {unknown[0]!r}", f"choose some of {', '.join(known)}, or all")
    words = Words(chosen(lang, ""))
    if os.geteuid():
        raise Denied("the tour makes network namespaces, which needs root", "sudo linkspan demo")
    if down:
        stage.Stage(words).clear()
        across.clear()
        print(words("nothing of the tour is left"))
        return
    well = [
        tour.run(words, keep=keep) if one == ONE_HOST else across.run(one, step, words, keep=keep) for one in wanted
    ]
    if not all(well):
        raise typer.Exit(NOT_WELL)
