"""Every target of `make fuzz`, with the cases that a run of the tests has time for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import TARGETS

TESTS = Path(__file__).parents[1]
SEED = "1"
SMALLEST_SHARE = 0.1
"""Of the asked cases, where they are dear."""
COUNTS = re.compile(r"^(\w+): (\d+) cases, (\d+) accepted, (\d+) refused", re.MULTILINE)


@pytest.fixture(scope="module")
def printed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What one process prints, which imports everything once and forks for each target."""
    command = [sys.executable, "-m", "fuzz", "--seed", SEED]
    cases = request.config.getoption("--fuzz-cases")
    command += ["--cases", str(cases), "--failures", str(tmp_path_factory.mktemp("failures"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))}
    ended = subprocess.run(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return ended.stdout


@pytest.mark.parametrize("name", TARGETS)
def test_every_case_is_accepted_or_refused(
    printed: str, name: str, request: pytest.FixtureRequest
) -> None:
    counts = {found[1]: tuple(map(int, found.groups()[1:])) for found in COUNTS.finditer(printed)}
    assert name in counts, printed
    cases, accepted, refused = counts[name]
    assert cases >= SMALLEST_SHARE * request.config.getoption("--fuzz-cases"), printed
    assert accepted and refused, printed
    assert f"{name}: a case" not in printed and f"{name}: the process" not in printed, printed
