"""The promise of a private run: its sites' plans, and the site of the largest ε."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mediffusion_core.common.errors import UserError
from mediffusion_core.privacy.accounting.plan import Plan
from mediffusion_core.settings import Settings

SUMMARY = "summary.json"


def read_summary(run: Path) -> dict[str, Any]:
    """The summary of a run that has ended.

    Raises:
        UserError: if there is none.
    """
    try:
        return dict(json.loads((run / SUMMARY).read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{run} has no summary; has the run ended?") from None


def plans(run: Path, summary: Mapping[str, Any], settings: Settings) -> dict[str, Plan]:
    """The plan of each site.

    Raises:
        UserError: if the summary is not of a private run.
    """
    try:
        return {
            site: Plan.of(
                settings, int(summary["census"][site]["train"]), float(one["noise_multiplier"])
            )
            for site, one in summary["privacy"]["sites"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{run}: its summary is not of a private run") from None


def worst_site(run: Path, summary: Mapping[str, Any], settings: Settings) -> tuple[str, Plan]:
    """The site of the largest promised ε, and its plan.

    Raises:
        UserError: if the summary is not of a private run.
    """
    found = plans(run, summary, settings)
    sites = summary["privacy"]["sites"]
    site = max(found, key=lambda name: float(sites[name]["epsilon"]))
    return site, found[site]
