"""The figures of each explanation, and the agreement of their maps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.evaluation.bootstrap import Estimate, estimate_mean
from mediffusion_core.evaluation.faithfulness import (
    area,
    deletion_curve,
    insertion_curve,
    rank_agreement,
)
from mediffusion_core.evaluation.localisation import energy_inside, overlap, pointing_game
from simulations.studies.explanations.methods import OURS, Case, Explanation


@dataclass(frozen=True)
class Row:
    """One explanation's figures, each with an interval over patients."""

    explanation: Explanation
    figures: Mapping[str, Estimate]
    deletion: Tensor
    """Mean probability of the class along the deletion, (steps + 1,)."""
    insertion: Tensor
    """The same along the insertion."""
    columns: Mapping[str, Tensor]
    """The figures of each image, (n,), nan where missing."""

    def described(self) -> dict[str, Any]:
        """The row of the results."""
        return {
            "method": self.explanation.name,
            "seconds_per_image": self.explanation.seconds,
            "figures": {name: asdict(one) for name, one in self.figures.items()},
            "deletion_curve": self.deletion.tolist(),
            "insertion_curve": self.insertion.tolist(),
        }


def measure(
    case: Case,
    explanation: Explanation,
    masks: Tensor,
    groups: Sequence[str],
    num_bootstraps: int,
    seed: int,
) -> Row:
    """Measures one explanation.

    `deletion` is the area under the probability of the class while the highest pixels of the map
    are replaced by the mean image, `insertion` while they are inserted into it. `pointing` is
    whether the highest pixel is in the widened mask, `inside` the share of the map's positive part
    in it, `iou` the overlap of the mask and as many of the highest pixels. `flipped` is whether a
    counterfactual changes the model's prediction.

    Args:
        case: The images and the model.
        explanation: The maps.
        masks: Pixels of the finding or the lesion, booleans (n, H, W), all false if unknown.
        groups: Patient or lesion of each image.
        num_bootstraps: Bootstraps of the intervals.
        seed: Seed of the bootstraps.
    """

    def probability(images: Tensor) -> Tensor:
        return case.model.classify(images).gather(1, case.index[:, None]).squeeze(1)

    maps = explanation.maps
    deletion = deletion_curve(case.sources, case.baseline, maps, probability)
    insertion = insertion_curve(case.sources, case.baseline, maps, probability)
    flipped = explanation.flipped
    columns = {
        "deletion": area(deletion),
        "insertion": area(insertion),
        "pointing": pointing_game(maps, masks),
        "inside": energy_inside(maps.clamp(min=0), masks),
        "iou": overlap(maps, masks),
        "flipped": torch.full((len(maps),), torch.nan) if flipped is None else flipped.double(),
    }
    return Row(
        explanation,
        {
            name: estimate_mean(values, groups, num_bootstraps, seed)
            for name, values in columns.items()
        },
        deletion.mean(dim=0),
        insertion.mean(dim=0),
        columns,
    )


def differences(
    rows: Sequence[Row], groups: Sequence[str], num_bootstraps: int, seed: int
) -> dict[str, dict[str, Estimate]]:
    """Our figures minus those of each other method, paired by image, with intervals."""
    [ours] = [row for row in rows if row.explanation.name == OURS]
    return {
        row.explanation.name: {
            name: estimate_mean(ours.columns[name] - values, groups, num_bootstraps, seed)
            for name, values in row.columns.items()
        }
        for row in rows
        if row is not ours
    }


def agreement(
    found: Sequence[Explanation], groups: Sequence[str], num_bootstraps: int, seed: int
) -> dict[tuple[str, str], Estimate]:
    """Mean Spearman correlation of each pair of methods' maps, over the images.

    The correlation is of absolute values, since differences of counterfactuals have no sign.
    """
    return {
        (one.name, two.name): estimate_mean(
            rank_agreement(one.maps.abs(), two.maps.abs()), groups, num_bootstraps, seed
        )
        for one, two in combinations(found, 2)
    }
