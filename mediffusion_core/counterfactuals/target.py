"""The target of a counterfactual: how the classifier should classify it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mediffusion_core.models import class_probabilities


@dataclass(frozen=True)
class Target:
    """One class for each image, or several findings that are to be present or absent."""

    index: Tensor
    """Classes to change, (B,) or (B, k) integers; with exclusive classes one an image."""
    present: Tensor
    """Whether each is to be present, booleans of that shape; all true if exclusive."""
    multi_label: bool

    def to(self, device: torch.device) -> "Target":
        """The same target on another device."""
        return Target(self.index.to(device), self.present.to(device), self.multi_label)

    def rows(self, chosen: Tensor) -> "Target":
        """The targets of some images, at positions (n,) or where a mask (B,) is true."""
        return Target(self.index[chosen], self.present[chosen], self.multi_label)

    def undone(self, probabilities: Tensor) -> "Target":
        """The classification that the sources have, given their probabilities (B, classes).

        Findings are as they were before the change; an exclusive class is the most probable one.
        """
        if self.multi_label:
            return Target(self.index, ~self.present, True)
        return Target(probabilities.argmax(dim=1), torch.ones_like(self.present), False)

    def named(self, num_classes: int) -> Tensor:
        """Which classes are to change, (B, num_classes) booleans."""
        named = torch.zeros(
            len(self.index), num_classes, dtype=torch.bool, device=self.index.device
        )
        return named.scatter(1, self._index, True)

    def reached(self, logits: Tensor) -> Tensor:
        """Which images (B,) the logits (B, C) assign to the target: p ≥ 0.5, or the argmax."""
        if not self.multi_label:
            return logits.argmax(dim=1) == self._index[:, 0]
        return ((logits.gather(1, self._index) > 0) == self._present).all(dim=1)

    def confidence(self, probabilities: Tensor) -> Tensor:
        """The target's probability (B,), given that of each class (B, C); of several the least."""
        asked = probabilities.gather(1, self._index)
        return torch.where(self._present, asked, 1 - asked).amin(dim=1)

    def loss(
        self, logits: Tensor, source_logits: Tensor | None, preserve_weight: float = 1.0
    ) -> Tensor:
        """Cross-entropy to the target, with a term that preserves the other findings.

        Σ_k BCE(l_k, y_k) over the classes to change + w Σ_j BCE(l_j, σ(l_j of the source)) over the
        others. The gradient of the second term by l_j is w (p_j - p_j of the source), which is 0 as
        long as p_j has not changed. With exclusive classes it is the cross-entropy of the softmax.

        Args:
            logits: (B, C).
            source_logits: Logits of the source, (B, C); None leaves the others free.
            preserve_weight: w.

        Returns:
            (B,).
        """
        if not self.multi_label:
            return F.cross_entropy(logits, self._index[:, 0], reduction="none")
        asked = F.binary_cross_entropy_with_logits(
            logits.gather(1, self._index), self._present.to(logits.dtype), reduction="none"
        ).sum(dim=1)
        if source_logits is None or not preserve_weight:
            return asked
        preserved = F.binary_cross_entropy_with_logits(
            logits, source_logits.sigmoid(), reduction="none"
        )
        others = preserved.masked_fill(self.named(logits.shape[1]), 0.0).sum(dim=1)
        return asked + preserve_weight * others

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (B, C) of logits (B, C), as calibrated as these are."""
        return class_probabilities(logits, self.multi_label)

    @property
    def _index(self) -> Tensor:
        return self.index.reshape(len(self.index), -1)

    @property
    def _present(self) -> Tensor:
        return self.present.reshape(len(self.present), -1)
