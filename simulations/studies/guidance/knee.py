"""The knee of a trade-off between a cost and a gain (Satopää et al. 2011)."""

import math
from collections.abc import Sequence


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of the finite points that no other point dominates, in order of their cost."""
    measured = [at for at in range(len(costs)) if math.isfinite(costs[at] + gains[at])]
    order = sorted(measured, key=lambda at: (costs[at], -gains[at]))
    front: list[int] = []
    for at in order:
        if not front or gains[at] > gains[front[-1]]:
            front.append(at)
    return front


def knee(costs: Sequence[float], gains: Sequence[float]) -> int | None:
    """Index of the point of the Pareto front that is highest above the line between its ends.

    This is Kneedle's first knee of a concave rising curve without smoothing (Satopää et al. 2011):
    the largest difference of gain and cost, both scaled to [0, 1] over the front. None if no point
    is above the line. A front of one point is its own knee.
    """
    front = pareto_front(costs, gains)
    if len(front) < 2:
        return front[0] if front else None
    first, last = front[0], front[-1]
    width, height = costs[last] - costs[first], gains[last] - gains[first]

    def above(at: int) -> float:
        return (gains[at] - gains[first]) / height - (costs[at] - costs[first]) / width

    best = max(front, key=above)
    return best if above(best) > 0 else None
