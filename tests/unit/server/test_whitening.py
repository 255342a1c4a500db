"""The whitening of all sites' features, and the classifier that is distilled."""

import pytest
import torch

from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging.protocol import COUNTS
from mediffusion_core.models.class_means import ClassSums
from mediffusion_core.models.whitening import FeatureSums
from mediffusion_core.settings import AlignmentSettings
from server.messages import Reply
from server.whitening import whitening


def reply(site: str, targets: torch.Tensor) -> Reply:
    generator = torch.Generator().manual_seed(len(site))
    features = torch.randn(len(targets), 6, generator=generator)
    groups = [f"{site} {number}" for number in range(len(targets))]
    sums = FeatureSums.of(features, groups).arrays() | ClassSums.of(features, targets).arrays()
    return Reply(site, {COUNTS: sums})


def test_distillation_needs_a_labelled_image_at_some_site() -> None:
    alignment = AlignmentSettings(distillation_weight=1, directions=4)
    none, one = torch.full((12, 3), torch.nan), torch.eye(3).repeat(4, 1)
    with pytest.raises(UserError, match="no site has a labelled image"):
        whitening([reply("a", none), reply("bb", none)], alignment, True)
    assert {"weight", "bias"} <= set(
        whitening([reply("a", none), reply("bb", one)], alignment, True)
    )
    aligned = AlignmentSettings(weight=1, directions=4)
    assert set(whitening([reply("a", none)], aligned, True)) == {"mean", "directions"}
