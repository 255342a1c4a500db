"""A run that asks the sites for statistics of their images and trains nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.evaluation.site_statistics import (
    CERTAIN,
    STATES,
    SUPPRESSED,
    UNITS,
    moments,
    sensitivity,
)
from mediffusion_core.evaluation.subgroups import SUBGROUPS
from mediffusion_core.messaging.protocol import COUNTS, LEDGER_TIP, STATISTICS
from mediffusion_core.privacy.accounting.accountant import epsilon
from mediffusion_core.privacy.accounting.plan import statistics_charge
from mediffusion_core.settings import Settings
from server.messages import Census, Reply, SiteError
from server.reply_bounds import count_of
from server.sites import Sites

Figures = dict[str, Any]
LABELLED = ("labelled", "unlabelled")


class SiteStatistics:
    """Asks all sites for their statistics, and adds up their counts."""

    def __init__(self, sites: Sites, settings: Settings, classes: Sequence[str]) -> None:
        """Takes the sites and the settings of the run, and the names of the classes."""
        self._sites = sites
        self._settings = settings
        self._classes = classes
        self._counts: dict[str, Mapping[str, Tensor]] = {}

    def execute(self, record: Callable[..., None]) -> Figures:
        """The statistics of each site, and of all together.

        Args:
            record: Takes the figures of each step, as `RunFolder.record` does.

        Raises:
            UserError: if the statistics cost more than the ε of a private run.
            SiteError: if too few sites answer.
        """
        privacy = self._promised()
        replies = self._sites.census()
        census = {reply.site: reply.census for reply in replies}
        record(stage="census", round=1, rounds=1, sites=census)
        # In a private run, so that a site notices an older copy of its ledger.
        tips = {
            reply.site: {LEDGER_TIP: reply.components[LEDGER_TIP]}
            for reply in replies
            if LEDGER_TIP in reply.components
        }
        self._sites.ask(STATISTICS, 1, {}, own=tips, take=self._take)
        if not self._counts:
            raise SiteError("no site has sent statistics")
        sites = sorted(self._counts)
        return {
            "source": self._settings.data.source,
            "privacy": privacy,
            "sites": {site: self._described([site], census) for site in sites},
            "pooled": self._described(sites, census),
            "set_aside": [asdict(one) for one in self._sites.take_set_aside()],
        }

    def _take(self, reply: Reply) -> None:
        self._counts[reply.site] = reply.components[COUNTS]

    @property
    def _deviation(self) -> float:
        """Standard deviation of the noise in each count of a site."""
        privacy = self._settings.privacy
        changed = sensitivity(len(self._classes), self._settings.data.channels)
        return privacy.release_noise * changed if privacy.enabled else 0.0

    def _promised(self) -> Figures | None:
        """ε of the statistics for a unit, where the run is private."""
        privacy = self._settings.privacy
        if not privacy.enabled:
            return None
        return {
            "unit": privacy.unit,
            "epsilon": epsilon([statistics_charge(privacy)], privacy.target_delta),
            "target_delta": privacy.target_delta,
            "deviation": self._deviation,
        }

    def _described(self, sites: Sequence[str], census: Mapping[str, Census]) -> Figures:
        """The statistics of some sites together, S of them."""
        counts = {
            name: torch.stack([self._counts[site][name] for site in sites])  # (S, ...)
            for name in self._counts[sites[0]]
        }
        noise = self._deviation * len(sites) ** 0.5
        head = self._noised_head(counts) if noise else _head(counts, [census[one] for one in sites])
        side = self._settings.data.image_size
        pixels = head["images"] * side**2 if head["images"] else None
        return {
            **head,
            "labelled": _cells(LABELLED, counts["labelled"]),
            "classes": {
                name: _class(counts["labels"][:, number], noise)
                for number, name in enumerate(self._classes)
            },
            "subgroups": _subgroups(counts["subgroups"]),
            "intensity": [
                _intensity(one, pixels, noise) for one in counts["histogram"].unbind(dim=1)
            ],
        }

    def _noised_head(self, counts: Mapping[str, Tensor]) -> Figures:
        """Each unit is labelled, or not, by a share of its images."""
        units, unit = float(counts["labelled"].sum()), self._settings.privacy.unit
        return {"images": None, "units": units, "unit": unit}


def _head(counts: Mapping[str, Tensor], census: Sequence[Census]) -> Figures:
    return {
        "images": sum(count_of(one, "images") for one in census),
        "units": sum(count_of(one, "patients") for one in census),
        "unit": " or ".join(UNITS[one] for one in counts["unit"].unique().tolist()),
    }


def _shown(counts: Tensor) -> Tensor:
    """Which counts leave; noised ones always do."""
    return torch.full_like(counts, counts.is_floating_point(), dtype=torch.bool) | (
        counts != SUPPRESSED
    )


def _cells(names: Sequence[str], counts: Tensor) -> Figures:
    """By name, the sum of the counts (S, K) that leave, and the number of sites that suppress."""
    found = {}
    for name, column in zip(names, counts.T, strict=True):
        shown = column[_shown(column)]
        count = shown.sum().item() if len(shown) else None
        found[name] = {"count": count, "suppressed_at": len(column) - len(shown)}
    return found


def _class(counts: Tensor, noise: float) -> Figures:
    """Counts of one class (S, 3) by state, and its prevalence at sites that tell it."""
    known = counts[_shown(counts)[:, :2].all(dim=1), :2].sum(dim=0)  # (2,)
    certain = float(known.sum()) > CERTAIN * 2**0.5 * noise
    prevalence = min(1.0, max(0.0, float(known[0] / known.sum()))) if certain else None
    return {**_cells(STATES, counts), "prevalence": prevalence}


def _subgroups(counts: Tensor) -> Figures:
    """By attribute, the cells of its subgroups (S, G)."""
    found: Figures = {}
    for (attribute, subgroup), column in zip(SUBGROUPS, counts.T, strict=True):
        found.setdefault(attribute, {}).update(_cells([subgroup], column[:, None]))
    return found


def _intensity(histograms: Tensor, pixels: int | None, noise: float) -> Figures:
    """The histogram of one channel (S, BINS), and its moments, over the bins that leave."""
    shown = _shown(histograms)
    total = torch.where(shown, histograms, 0).sum(dim=0)
    mean, deviation = moments(total, noise)
    return {
        "histogram": total.tolist(),
        "suppressed_at": (~shown).sum(dim=0).tolist(),
        "shown": float(total.sum() / pixels) if pixels else None,
        "mean": mean,
        "deviation": deviation,
    }
