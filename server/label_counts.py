"""How often each class occurs at the sites, where their objective needs it."""

from collections.abc import Collection

import torch

from mediffusion_core.training.label_counts import LabelCounts
from server.messages import Census
from server.robust_statistics import median


def label_counts(census: Collection[Census], malicious: int) -> LabelCounts:
    """The sum over the sites' census; with malicious sites, each prevalence is their median.

    Args:
        census: Of every site, with `per_class` and `known_per_class`.
        malicious: f.
    """
    whole = LabelCounts.of_census(census)
    if not malicious:
        return whole
    sites = [LabelCounts.of_census([one]) for one in census]
    positive = torch.zeros_like(whole.positive)
    for index in range(len(positive)):
        rates = [one.positive[index] / one.known[index] for one in sites if one.known[index]]
        if rates:
            positive[index] = median(rates) * whole.known[index]
    return LabelCounts(positive, whole.known)
