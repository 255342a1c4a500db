"""Where paying more for more stops being worth it."""

import math
from collections.abc import Sequence


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Measured points than which none costs no more and gains more, the cheapest first."""
    measured = [at for at in range(len(costs)) if math.isfinite(costs[at] + gains[at])]
    order = sorted(measured, key=lambda at: (costs[at], -gains[at]))
    front: list[int] = []
    for at in order:
        if not front or gains[at] > gains[front[-1]]:
            front.append(at)
    return front


def knee(costs: Sequence[float], gains: Sequence[float]) -> int | None:
    """The point of the front that stands highest above the line between its ends.

    Kneedle's first knee for a concave rising curve (Satopää et al. 2011), on the points as they
    are: both axes from 0 to 1 over the front, the largest gain - cost. None where no point stands
    above that line: the curve bends nowhere, or the other way. With one point the point itself.
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
