"""What the runs of each ε promise: noise, sampling, steps, and all that their summaries have."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from simulations.engine.cells import RUN
from simulations.studies.privacy.cells import epsilon_text
from simulations.studies.privacy.plan import Key, Work
from simulations.studies.promises import read_summary, worst_site

TITLES: Mapping[str, str] = {
    "epsilon": "ε of the plan",
    "noise_multiplier": "σ",
    "sample_rate": "q",
    "mu": "μ (Gaussian DP)",
}
"""Titles of the fields of a site's promise; other fields are named as they are."""


def promise_table(work: Work) -> tuple[list[str], list[list[str]]]:
    """Headings and lines, one line an ε, of the site of the largest ε in each run.

    A number that differs between seeds is a range.
    """
    found = {
        epsilon: [_promise(work, key) for key in work.finished() if key[0] == epsilon]
        for epsilon in work.plan.epsilons
    }
    fields = list(dict.fromkeys(name for runs in found.values() for run in runs for name in run))
    lines = [
        [
            epsilon_text(epsilon),
            *(_range([run[name] for run in runs if name in run]) for name in fields),
        ]
        for epsilon, runs in found.items()
        if runs
    ]
    return ["ε", *(TITLES.get(name, name.replace("_", " ")) for name in fields)], lines


def _promise(work: Work, key: Key) -> dict[str, float]:
    run = work.runs[key]
    folder = run.folder(work.study) / RUN
    summary = read_summary(folder)
    site, plan = worst_site(folder, summary, run.settings)
    steps = {
        f"{stage} steps": sum(plan.steps(stage, number) for number in range(1, rounds + 1))
        for stage, _, rounds in plan.stages
    }
    numbers = dict(_numbers(summary["privacy"]["sites"][site]))
    if math.isinf(key[0]):
        numbers["epsilon"] = math.inf
    return {**numbers, **steps}


def _numbers(fields: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """All numbers, also those below a key, which are named by both."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{name} ")
        elif isinstance(value, int | float):
            yield f"{before}{name}", float(value)


def _range(values: list[float]) -> str:
    if not values:
        return "-"
    ends = [f"{one:.4g}".replace("inf", "∞") for one in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends))
