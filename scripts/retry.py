"""Run the files of the tests that failed in the parallel run once more, alone.

A machine that runs other tests at the same time may cost a test its deadline. Such a test passes alone, and does not
fail the whole run. It is still listed, because its fault, in the code or in the test, is still to be found.
More than ``MOST`` failed tests are no accident and fail the run. A file runs as a whole, because its tests may look at
one lab in their order.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")
"""Where pytest's cache plugin lists the tests that failed, as the keys of a JSON object."""
MOST = 3
"""How many tests may fail in the parallel run and pass alone."""


def failed_tests() -> list[str]:
    """Return the ids of the tests that failed in the last run that kept a cache."""
    return sorted(json.loads(LAST_FAILED.read_text())) if LAST_FAILED.exists() else []


def main() -> int:
    """Run the failed tests again, print those that passed now, and return the exit code of the whole run."""
    tests = failed_tests()
    if not tests:
        print("the run failed, but pytest names no failed test: see above", file=sys.stderr)
        return 1
    if len(tests) > MOST:
        print(f"{len(tests)} tests failed; no second try, because more than {MOST} are no accident", file=sys.stderr)
        return 1
    print(f"\n{len(tests)} failed beside other tests; their files run once more, alone:", flush=True)
    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not alone", *files]
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        print("\nfailed beside other tests and passed alone (each is a defect to find):")
        print("\n".join(f"  {test}" for test in tests))
    return code


if __name__ == "__main__":
    sys.exit(main())
