"""What a user asks a counterfactual for, in the model's terms."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mediffusion_core.diffusion.target import Target
from mediffusion_core.errors import UserError
from mediffusion_core.settings import did_you_mean


def class_index(name: str, classes: Sequence[str]) -> int:
    """Where a class stands among the logits.

    Raises:
        UserError: if the model does not know it.
    """
    if name not in classes:
        hint = did_you_mean(name, list(classes)) or ";"
        raise UserError(f"unknown class {name!r}{hint} allowed: {', '.join(classes)}")
    return list(classes).index(name)


def class_indices(names: Sequence[str], classes: Sequence[str], multi_label: bool) -> list[int]:
    """Where the classes that are to change stand among the logits.

    Raises:
        UserError: no class, one that the model does not know, one twice, or several that exclude
            each other.
    """
    indices = [class_index(name, classes) for name in names]
    if not indices:
        raise UserError("no class is named; name what should change")
    if len(set(names)) < len(names):
        raise UserError(f"a class is named twice: {', '.join(names)}")
    if len(indices) > 1 and not multi_label:
        raise UserError(f"{' and '.join(names)} exclude each other; choose one class")
    return indices


def wish_for(
    indices: Sequence[int], probabilities: Tensor, multi_label: bool, present: bool | None = None
) -> Target:
    """The target of each image.

    Args:
        indices: The k classes to change; one if they exclude each other.
        probabilities: What the model says of the images, (B, classes).
        multi_label: Whether the classes are independent.
        present: Whether an image should have the classes afterwards. By default a finding is
            removed where the model sees it, p ≥ 0.5, and added where it does not.

    Raises:
        UserError: if an exclusive class is to be absent: of what should be there, nothing is said.
    """
    rows = len(probabilities)
    if not multi_label and present is False:
        raise UserError("the classes exclude each other: name the class that an image should have")
    if multi_label and present is None:
        wanted = probabilities[:, list(indices)].cpu() < 0.5  # (B, k)
    else:
        wanted = torch.full((rows, len(indices)), present is not False)
    return Target(torch.tensor(list(indices)).expand(rows, -1), wanted, multi_label)
