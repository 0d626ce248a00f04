"""Run the tests that failed once more, alone.

A machine that runs other tests at the same time may cost a test its deadline, and so may another machine on the same
hardware. Such a test passes alone, and does not fail the whole run. It is still listed, because its fault, in the code
or in the test, is still to be found.
More than ``MOST`` failed tests are no accident and fail the run. Tests of a file may look at one lab in their order. So
the tests before a failed one run again, too, if they use the same fixture of their module, and so do the tests before
these. A fixture that nobody changes has the session for its scope, or each test has its own.
A failed test that is not found again, because its id is another one each time for example, fails the run. A file that
could not be read is a failed test, too, and all its tests run again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

CACHES = Path(".pytest_cache")
"""The cache of the parallel run, with those of the runs that have the machine to themselves (scripts/alone.py)."""
MOST = 3
"""How many tests may fail in the run and pass in the second try."""


def failed_tests() -> list[str]:
    """Return the ids of the tests that failed: pytest's cache plugin lists them, as the keys of a JSON object."""
    return sorted({test for file in CACHES.rglob("v/cache/lastfailed") for test in json.loads(file.read_text())})


def shared_fixtures(item: pytest.Item) -> set[tuple[str, object]]:
    """Return the fixtures that a test shares with others of its module, each with the number of its parameter."""
    known = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009 - pytest has no public name for it
    parameters = getattr(item, "callspec", None)
    numbers = {} if parameters is None else parameters.indices
    return {(name, numbers.get(name)) for name, found in known.items() if found[-1].scope == "module"}


class SecondTry:
    """A plug-in of pytest: of all tests that would run it leaves the failed ones, and the steps before them.

    ``missing`` are the failed ids that are not among them.
    """

    def __init__(self, failed: list[str]) -> None:
        self.failed = frozenset(failed)
        self.missing = set(failed)

    @pytest.hookimpl(trylast=True)  # after others have left out what the run's options leave out
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out all other tests."""
        kept: list[pytest.Item] = []
        later: dict[Path, set[tuple[str, object]]] = {}
        for item in reversed(items):
            wanted = later.setdefault(item.path, set())
            shared = shared_fixtures(item)
            found = self.failed & {item.nodeid, item.nodeid.partition("::")[0]}
            if found or shared & wanted:
                kept.append(item)
                wanted |= shared
                self.missing -= found
        items[:] = reversed(kept)


def main() -> int:
    """Run the failed tests again, print those that passed now, and return the exit code of the whole run."""
    tests = failed_tests()
    if not tests:
        print("the run failed, but pytest names no failed test: see above", file=sys.stderr)
        return 1
    if len(tests) > MOST:
        print(f"{len(tests)} tests failed; no second try, because more than {MOST} are no accident", file=sys.stderr)
        return 1
    print(f"\n{len(tests)} failed; they run once more, alone:", flush=True)
    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    again = SecondTry(tests)
    code = pytest.main(["-p", "no:cacheprovider", *files], [again])
    if again.missing:
        print("\nfailed, and pytest finds them no more, so they did not run again:", file=sys.stderr)
        print("\n".join(f"  {test}" for test in sorted(again.missing)), file=sys.stderr)
        return int(code) or 1
    if code == 0:
        print("\nfailed and passed in the second try (each is a defect to find):")
        print("\n".join(f"  {test}" for test in tests))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
