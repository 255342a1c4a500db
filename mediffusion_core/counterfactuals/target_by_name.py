"""From the classes that a user names to the `Target` of a counterfactual."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.settings import did_you_mean


def class_index(name: str, classes: Sequence[str]) -> int:
    """Index of a class among the logits.

    Raises:
        UserError: the model has no such class.
    """
    if name not in classes:
        hint = did_you_mean(name, list(classes)) or ";"
        raise UserError(f"unknown class {name!r}{hint} allowed: {', '.join(classes)}")
    return list(classes).index(name)


def class_indices(names: Sequence[str], classes: Sequence[str], multi_label: bool) -> list[int]:
    """Indices of the classes to change among the logits.

    Raises:
        UserError: no class is named, one that the model does not have, one twice, or several
            exclusive ones.
    """
    indices = [class_index(name, classes) for name in names]
    if not indices:
        raise UserError("no class is named; name what should change")
    if len(set(names)) < len(names):
        raise UserError(f"a class is named twice: {', '.join(names)}")
    if len(indices) > 1 and not multi_label:
        raise UserError(f"{' and '.join(names)} exclude each other; choose one class")
    return indices


def target_for(
    indices: Sequence[int], probabilities: Tensor, multi_label: bool, present: bool | None = None
) -> Target:
    """The target of each image.

    Args:
        indices: The k classes to change; one if the classes are exclusive.
        probabilities: The model's probabilities of the images, (B, classes).
        multi_label: Whether the classes are independent.
        present: Whether the classes are to be present. By default a finding is removed where its
            probability is at least 0.5, and added elsewhere.

    Raises:
        UserError: an exclusive class is to be absent, which leaves open which one is to be present.
    """
    rows = len(probabilities)
    if not multi_label and present is False:
        raise UserError("the classes exclude each other: name the class that an image should have")
    if multi_label and present is None:
        wanted = probabilities[:, list(indices)].cpu() < 0.5  # (B, k)
    else:
        wanted = torch.full((rows, len(indices)), present is not False)
    return Target(torch.tensor(list(indices)).expand(rows, -1), wanted, multi_label)
