"""The range of each number in a reply, from the settings and from the site's own census.

A round's work follows from the census: its steps, and how many images they see at most. AdamW
bounds what so many steps can move a weight. Counts of validation patients add up to at most the
number of them. A number outside its range is false, whatever the site trained on.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.evaluation.calibration import TEMPERATURES
from mediffusion_core.messaging.moment_names import SQUARE, STEPS
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    AUTOENCODER_MOMENTS,
    HEAD,
    HEAD_MOMENTS,
    TRAIN_AUTOENCODER,
    UNET,
    UNET_MOMENTS,
)
from mediffusion_core.privacy.accounting.noisy_statistics import latent_bound
from mediffusion_core.privacy.accounting.plan import AUTOENCODER as AUTOENCODER_STAGE
from mediffusion_core.privacy.accounting.plan import JOINT as JOINT_STAGE
from mediffusion_core.privacy.accounting.plan import Plan
from mediffusion_core.settings import Settings
from mediffusion_core.training.schedule import local_steps
from server.messages import Census, RefusedReplyError, StateDict

MAX_IMAGES = 10**8
"""At one site. Weights of 1,000 such sites still add up exactly in float64."""
MAX_STRETCH = 32.0
"""How many learning rates AdamW moves a weight in one step, at most.

|m̂| / √v̂ ≤ (1 - β₁) / √((1 - β₂)(1 - β₁² / β₂)) = 7.3 by Cauchy-Schwarz, with PyTorch's betas 0.9
and 0.999 (AdamW: arXiv 1711.05101). Averaged moments keep that bound; 8-bit ones may double it.
"""
MAX_LOGIT = 1e4
"""The largest difference of two logits that a loss may come from."""
DEVIATIONS = 12.0
"""Standard deviations of noise that a noised sum may lie outside its range."""
ROUNDING = 1e-6


@dataclass(frozen=True)
class Bounds:
    """What one site can do in one round of training."""

    settings: Settings
    round_number: int
    steps: int
    """Steps of a site that trains; one that has nothing to train on makes none."""
    images: float
    labelled: float
    rates: Mapping[str, float]
    """Learning rate of each trained component."""

    @classmethod
    def of(cls, settings: Settings, kind: str, round_number: int, census: Census) -> Self:
        """The bounds of a site with that census."""
        training = settings.training
        train, labelled = _count(census, "train"), _count(census, "labelled")
        if kind == TRAIN_AUTOENCODER:
            stage, batch_size = AUTOENCODER_STAGE, training.autoencoder.batch_size
            epochs, every = training.autoencoder.local_epochs, True
            rates = {AUTOENCODER: training.autoencoder.learning_rate}
        else:
            stage, batch_size = JOINT_STAGE, training.joint.batch_size
            epochs, every = training.joint.local_epochs, training.joint.diffusion_weight > 0
            rates = {UNET: training.joint.learning_rate, HEAD: training.joint.head_learning_rate}
        if settings.privacy.enabled:
            # Steps do not depend on the noise, which takes seconds to find.
            plan = Plan.of(settings, train, noise_multiplier=1.0)
            steps = plan.steps(stage, round_number)
            images = steps * plan.expected_units
        else:
            steps = local_steps(train, epochs, batch_size, round_number)
            images = steps * batch_size if every else train
        return cls(settings, round_number, steps, images, labelled, rates)

    def refuse_metrics(self, metrics: Mapping[str, float], needed: Collection[str]) -> None:
        """Refuses work that a site with this census cannot have done.

        Raises:
            RefusedReplyError: if a needed metric is missing, or one is out of range.
        """
        if missing := set(needed) - metrics.keys():
            raise RefusedReplyError(f"sent no metric {', '.join(sorted(missing))}")
        most = {"images_seen": self.images, "labelled_seen": self.labelled, "pseudo_labelled": 1.0}
        for name, largest in most.items():
            value = metrics.get(name, 0.0)
            if not 0 <= value <= largest * (1 + ROUNDING):
                raise RefusedReplyError(f"sent {name}={value:g}, outside 0 to {largest:g}")
        if metrics.get("steps", 0) not in (0, self.steps):
            raise RefusedReplyError(f"sent steps={metrics['steps']:g}, not {self.steps} or 0")

    def refuse_components(
        self, sent: Mapping[str, StateDict], trained: Mapping[str, StateDict]
    ) -> None:
        """Refuses weights and moments that so many steps cannot lead to.

        Args:
            sent: The components as the server has them.
            trained: The components as the site sent them back, finite and of the same shapes.

        Raises:
            RefusedReplyError: if second moments are negative, or steps or weights moved too far.
        """
        for component in (AUTOENCODER_MOMENTS, UNET_MOMENTS, HEAD_MOMENTS):
            if component in trained:
                self._refuse_moments(component, sent[component], trained[component])
        for component, rate in self.rates.items():
            # An adapter's product moves weights further than its factors' steps.
            if component == UNET and self._trains_adapters:
                continue
            for name, before in sent[component].items():
                self._refuse_reach(component, name, before, trained[component][name], rate)

    @property
    def _trains_adapters(self) -> bool:
        return self.settings.privacy.enabled and self.settings.privacy.trained == "adapters"

    def _refuse_moments(self, component: str, before: StateDict, after: StateDict) -> None:
        for name, values in after.items():
            if name.endswith(SQUARE) and values.numel() and float(values.min()) < 0:
                raise RefusedReplyError(f"sent a negative second moment in {component} {name}")
        least = float(before[STEPS]) * (1 - ROUNDING)
        most = (float(before[STEPS]) + self.steps) * (1 + ROUNDING)
        if not least <= float(after[STEPS]) <= most:
            raise RefusedReplyError(
                f"sent {component} of {float(after[STEPS]):g} steps, outside {least:g} to {most:g}"
            )

    def _refuse_reach(
        self, component: str, name: str, before: Tensor, after: Tensor, rate: float
    ) -> None:
        if not before.is_floating_point() or not before.numel():
            return
        decay = max(1.0, self.settings.training.joint.weight_decay)
        reach = self.steps * rate * (MAX_STRETCH + decay * before.double().abs())
        if self.settings.federation.local_normalisation:
            reach = reach * 2 * self.round_number  # the site continues from values of its own
        excess = (after.double() - before.double()).abs() - reach
        if float(excess.max()) > ROUNDING * (1 + float(before.abs().max())):
            raise RefusedReplyError(
                f"moved {component} {name} further than {self.steps} steps of its optimizer can"
            )


def refuse_census(counts: Mapping[str, Any], settings: Settings, num_classes: int) -> Census:
    """The counts of a census.

    Raises:
        RefusedReplyError: if one is missing, undeclared, no count, or does not fit the others.
    """
    needed = {"train", "labelled"}
    if not settings.privacy.enabled:
        needed |= {"images", "validation", "test", "patients", "per_class"}
        if settings.training.joint.needs_label_counts:
            needed.add("known_per_class")
    if set(counts) != needed:
        raise RefusedReplyError("sent other counts than a census has")
    for name in sorted(needed):
        per_class = name in ("per_class", "known_per_class")
        values = counts[name] if per_class else [counts[name]]
        if not isinstance(values, list) or (per_class and len(values) != num_classes):
            raise RefusedReplyError(f"sent {name} that has not {num_classes} classes")
        if not all(type(one) is int and 0 <= one <= MAX_IMAGES for one in values):
            raise RefusedReplyError(f"sent a count {name} outside 0 to {MAX_IMAGES}")
    _refuse_misfit(counts)
    if settings.privacy.enabled:
        try:
            Plan.of(settings, counts["train"], noise_multiplier=1.0)
        except UserError as error:
            raise RefusedReplyError(str(error)) from None
    return dict(counts)


def _refuse_misfit(counts: Mapping[str, Any]) -> None:
    """Refuses parts that are larger than their whole."""
    parts = [("labelled", "train"), ("patients", "images")]
    for part, whole in parts:
        if counts.get(part, 0) > counts.get(whole, counts.get(part, 0)):
            raise RefusedReplyError(f"sent more {part} than {whole}")
    used = sum(counts.get(name, 0) for name in ("train", "validation", "test"))
    if used > counts.get("images", used):
        raise RefusedReplyError("sent splits of more images than it has")
    for name in ("per_class", "known_per_class"):
        if any(one > counts["train"] for one in counts.get(name, ())):
            raise RefusedReplyError(f"sent {name} of more images than train")


def refuse_latent_sums(sums: StateDict, census: Census, settings: Settings) -> None:
    """Refuses sums that no latents have.

    Raises:
        RefusedReplyError: if they are of another number of latents than the census says, or larger
            than sums of so many can be.
    """
    total, squares, count = sums["total"], sums["squares"], float(sums["count"])
    _, height, width = settings.latent_shape
    train = _count(census, "train")
    expected = float(train if settings.privacy.enabled else train * height * width)
    if count != float(torch.tensor(expected, dtype=torch.float32)):
        raise RefusedReplyError(f"sent latent sums of {count:g} values, not {expected:g}")
    if settings.privacy.enabled:
        bound = latent_bound(settings.latent_shape[0])
        most = bound * (2 * train + DEVIATIONS * settings.privacy.release_noise)
        if float(torch.cat([total, squares]).abs().max()) > most:
            raise RefusedReplyError(f"sent latent sums above {most:g}")
        return
    if bool((squares < 0).any()):
        raise RefusedReplyError("sent negative sums of squares")
    if bool((total.square() > count * squares * (1 + ROUNDING) + ROUNDING).any()):
        raise RefusedReplyError("sent latent sums that are larger than their squares allow")


def refuse_validation(sums: StateDict, census: Census, num_classes: int) -> None:
    """Refuses counts and losses that no validation patients have.

    Raises:
        RefusedReplyError: if they count others than the census, do not fall with the threshold, or
            are no losses of one set of logits at rising temperatures.
    """
    patients = _count(census, "validation")
    _refuse_curve("counts", sums["counts"], patients)
    # A patient is drawn up to as often as there are patients.
    _refuse_curve("bootstraps", sums["bootstraps"], patients**2)
    losses = sums["temperature_losses"]
    inverse = 1 / TEMPERATURES
    most = patients * num_classes * (torch.tensor(2.0 * num_classes).log() + MAX_LOGIT * inverse)
    if bool((losses < -ROUNDING).any()) or bool((losses > most).any()):
        raise RefusedReplyError("sent temperature losses out of range")
    # Cross-entropy is convex in the inverse temperature: slopes fall as the temperature rises.
    slopes = losses.diff() / inverse.diff()
    if bool((slopes.diff() > ROUNDING * (1 + slopes.abs().max())).any()):
        raise RefusedReplyError("sent temperature losses that no logits have")


def _refuse_curve(name: str, counts: Tensor, most: int) -> None:
    """Checks confusion counts (..., T, 2, 2): not negative, of one total, falling with T."""
    if counts.numel() and (int(counts.min()) < 0 or int(counts.max()) > most):
        raise RefusedReplyError(f"sent {name} outside 0 to {most}")
    totals = counts.sum(dim=-1)  # (..., T, 2)
    if bool((totals != totals[..., :1, :]).any()) or bool((totals.sum(dim=-1) > most).any()):
        raise RefusedReplyError(f"sent {name} of more than {most} patients, or of different ones")
    if bool((counts[..., 1].diff(dim=-2) > 0).any()):
        raise RefusedReplyError(f"sent {name} that rise with the threshold")


def _count(census: Census, name: str) -> int:
    value = census[name]
    assert isinstance(value, int)
    return value
