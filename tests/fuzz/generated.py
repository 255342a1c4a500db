"""Cases that Hypothesis makes, the same for the same seed."""

import contextlib
import time

import hypothesis
from hypothesis import HealthCheck, Phase, given

from fuzz.harness import Board, Guard, Target

BATCH = 5_000
"""Cases after which Hypothesis forgets those it has made, which it keeps in memory."""


class TimeIsUpError(BaseException):
    """Hypothesis takes no exception of this kind for a failing case."""


def explore(
    target: Target, guard: Guard, board: Board, cases: int, minutes: float | None, seed: int
) -> None:
    """Runs that many cases; the exception of a failing one leaves, with the smallest found."""
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    def run(case: object) -> None:
        if time.monotonic() > end:
            raise TimeIsUpError
        guard(case)

    batch = 0
    while (left := cases - board.accepted - board.refused) > 0:
        limits = hypothesis.settings(
            max_examples=min(left, BATCH),
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        seeded = hypothesis.seed(seed * 1_000_003 + batch)
        with contextlib.suppress(TimeIsUpError):
            seeded(limits(given(target.cases)(run)))()
        if time.monotonic() > end:
            break
        batch += 1
