"""From logits to probabilities."""

from torch import Tensor


def class_probabilities(logits: Tensor, multi_label: bool) -> Tensor:
    """Probabilities (N, classes) of logits: independent if multi-label, else they sum to 1."""
    return logits.sigmoid() if multi_label else logits.softmax(dim=1)
