"""The promise of a run: noise, sampling, steps, and other readings of its ε."""

from collections.abc import Mapping
from pathlib import Path

from configs.compose import compose
from mediffusion_core.privacy.accounting.interpretation import gaussian_mu, group_epsilon
from simulations.engine.simulate import read_launch
from simulations.studies.promises import read_summary, worst_site

GROUPS = (2, 5)
"""Sizes of the groups of units whose ε is stated."""


def promise_figures(run: Path) -> dict[str, float | None]:
    """The promise of a finished run at the site of its largest ε, by the titles of the page.

    Raises:
        UserError: if the run is not private or has not ended.
    """
    settings, summary = compose(*read_launch(run)), read_summary(run)
    _, plan = worst_site(run, summary, settings)
    charges, delta = plan.charges(), settings.privacy.target_delta
    steps = {
        f"{stage} steps": sum(plan.steps(stage, number) for number in range(1, rounds + 1))
        for stage, _, rounds in plan.stages
    }
    return {
        "σ": plan.noise_multiplier,
        "q": plan.sample_rate,
        **{name: count for name, count in steps.items() if count},
        "μ": gaussian_mu(charges),
        **{f"ε of {size} units": group_epsilon(charges, size, delta) for size in GROUPS},
    }


def ranged(promises: list[Mapping[str, float | None]], name: str) -> str:
    """A number of several promises: a range if they differ, ∞ where JSON has null."""
    values = sorted({f"{one[name]:.4g}" for one in promises if one[name] is not None}, key=float)
    missing = ["∞"] if any(one[name] is None for one in promises) else []
    return " to ".join([*values[:1], *values[1:][-1:], *missing])
