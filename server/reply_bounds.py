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
from mediffusion_core.messaging.moment_names import MEAN, SQUARE, STEPS
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    AUTOENCODER_MOMENTS,
    CONTROLS,
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

MAX_STRETCH = 32.0
"""How many learning rates AdamW moves a weight in one step, at most.

|m̂| / √v̂ ≤ (1 - β₁) / √((1 - β₂)(1 - β₁² / β₂)) = 7.3 by Cauchy-Schwarz, with PyTorch's betas 0.9
and 0.999 (AdamW: arXiv 1711.05101). Averaged moments keep that bound; 8-bit ones may double it.
"""
MAX_GRADIENT = 1e4
"""How many times the clipping norm a mean gradient before clipping may be."""
MAX_MEAN_SQUARE = 1e8
"""Of a site's latents."""
MAX_FEATURE = 1e4
"""Of a public encoder."""
DEVIATIONS = 12.0
"""Standard deviations of noise that a noised sum may lie outside its range."""
MAX_NOISE = 100.0
"""The largest noise multiplier of private steps that moments may come from."""
MOMENT_EPSILON = 1e-7
"""First moments so small move a weight by few learning rates even where the second one is 0."""
EIGHT_BIT = 1e-4
"""Part of a tensor's largest root of a second moment that 8-bit coding may round to 0."""
SINGLE = 1e-4
"""Relative error of sums that travel in single precision."""
ROUNDING = 1e-6


@dataclass(frozen=True)
class Bounds:
    """Upper bounds of one site's work in one round of training."""

    settings: Settings
    steps: int
    """Of a site that trains. A site with nothing to train on makes none."""
    images: float
    labelled: float
    units: int
    """Training units of the census, as many as images without privacy."""
    rates: Mapping[str, float]
    """Learning rate of each trained component."""

    @classmethod
    def of(cls, settings: Settings, kind: str, round_number: int, census: Census) -> Self:
        """The bounds of a site with that census."""
        training = settings.training
        train, labelled = count_of(census, "train"), count_of(census, "labelled")
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
        return cls(settings, steps, images, labelled, train, rates)

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
        for record in CONTROLS.values():
            for name, values in trained.get(record, {}).items():
                most = MAX_GRADIENT * self.settings.training.joint.max_grad_norm
                if values.numel() and float(values.abs().max()) > most:
                    raise RefusedReplyError(f"sent a gradient in {record} {name} above {most:g}")
        for component, rate in self.rates.items():
            # An adapter's product moves weights further than its factors' steps.
            if component == UNET and self._trains_adapters:
                continue
            for name, before in sent[component].items():
                self._refuse_reach(component, name, before, trained[component][name], rate)

    @property
    def _trains_adapters(self) -> bool:
        return self.settings.privacy.enabled and self.settings.privacy.trained == "adapters"

    @property
    def _max_gradient(self) -> float:
        """The largest gradient of one weight that an optimizer may be given."""
        settings = self.settings
        if settings.privacy.enabled:
            privacy, units = settings.privacy, max(1.0, self.units)
            expected = min(privacy.batch_size, units)
            return privacy.max_grad_norm * (units + DEVIATIONS * MAX_NOISE) / expected
        return max(1.0, settings.training.joint.max_grad_norm)

    def _refuse_moments(self, component: str, before: StateDict, after: StateDict) -> None:
        largest = self._max_gradient * (1 + 0.1)
        coded = EIGHT_BIT if self.settings.federation.compression == "int8" else 0.0
        for name, values in after.items():
            if not name.endswith(SQUARE) or not values.numel():
                continue
            if float(values.min()) < 0:
                raise RefusedReplyError(f"sent a negative second moment in {component} {name}")
            roots = values.double().sqrt()
            mean = after[name.removesuffix(SQUARE) + MEAN].double().abs()
            rest = MOMENT_EPSILON + coded * float(roots.max())
            if float(roots.max()) > largest or bool((mean > MAX_STRETCH * roots + rest).any()):
                raise RefusedReplyError(f"sent impossible moments in {component} {name}")
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
        # With `local_normalisation` a site continues from normalisation of its own.
        if self.settings.federation.local_normalisation and "norm" in name:
            return
        decay = max(1.0, self.settings.training.joint.weight_decay)
        reach = self.steps * rate * (MAX_STRETCH + decay * before.double().abs())
        excess = (after.double() - before.double()).abs() - reach
        if float(excess.max()) > ROUNDING * (1 + float(before.abs().max())):
            raise RefusedReplyError(
                f"changed {component} {name} by more than {self.steps} steps allow"
            )


def refuse_census(counts: Mapping[str, Any], settings: Settings, num_classes: int) -> Census:
    """The counts of a census.

    Raises:
        RefusedReplyError: if one is missing, undeclared, no count, or does not fit the others.
    """
    needed = _counts_of_census(settings)
    if set(counts) != needed:
        raise RefusedReplyError("sent other counts than a census has")
    for name in sorted(needed):
        per_class = name in ("per_class", "known_per_class")
        values = counts[name] if per_class else [counts[name]]
        if not isinstance(values, list) or (per_class and len(values) != num_classes):
            raise RefusedReplyError(f"sent {name} of another number of classes than {num_classes}")
        most = settings.federation.max_images
        if not all(type(one) is int and 0 <= one <= most for one in values):
            raise RefusedReplyError(f"sent a count {name} outside 0 to {most} (max_images)")
    _refuse_misfit(counts)
    if settings.privacy.enabled and settings.task == "training":
        try:
            Plan.of(settings, counts["train"], noise_multiplier=1.0)
        except UserError as error:
            raise RefusedReplyError(str(error)) from None
    return dict(counts)


def _counts_of_census(settings: Settings) -> set[str]:
    """The counts that a census has in a run with these settings."""
    if settings.task != "training":
        return set() if settings.privacy.enabled else {"images", "patients"}
    if settings.privacy.enabled:
        return {"train", "labelled"}
    needed = {"train", "labelled", "images", "validation", "test", "patients", "per_class"}
    return needed | ({"known_per_class"} if settings.training.joint.needs_label_counts else set())


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
    train = count_of(census, "train")
    expected = float(train if settings.privacy.enabled else train * height * width)
    if count != float(torch.tensor(expected, dtype=torch.float32)):
        raise RefusedReplyError(f"sent latent sums of {count:g} values, not {expected:g}")
    if settings.privacy.enabled:
        bound = latent_bound(settings.latent_shape[0])
        most = bound * (2 * train + DEVIATIONS * settings.privacy.release_noise)
        if float(torch.cat([total, squares]).abs().max()) > most:
            raise RefusedReplyError(f"sent latent sums above {most:g}")
        return
    if bool((squares < 0).any()) or bool((squares > MAX_MEAN_SQUARE * count).any()):
        raise RefusedReplyError(f"sent mean squares outside 0 to {MAX_MEAN_SQUARE:g}")
    if bool((total.square() > count * squares * (1 + ROUNDING) + ROUNDING).any()):
        raise RefusedReplyError("sent latent sums that are larger than their squares allow")


def refuse_feature_sums(sums: StateDict, census: Census) -> None:
    """Refuses sums that no features have.

    Raises:
        RefusedReplyError: if they are of another number of images than the census says, too large,
            or not those of a scatter whose part within groups is no larger.
    """
    train, count, repeats = count_of(census, "train"), float(sums["count"]), float(sums["repeats"])
    if count != train:
        raise RefusedReplyError(f"sent feature sums of {count:g} images, not {train}")
    if repeats != round(repeats) or not 0 <= repeats <= max(0, train - 1):
        raise RefusedReplyError(f"sent {repeats:g} repeated images of {train}")
    if float(sums["mean"].abs().max()) > MAX_FEATURE:
        raise RefusedReplyError(f"sent mean features above {MAX_FEATURE:g}")
    largest = train * MAX_FEATURE**2
    variances = []
    for name in ("scatter", "within"):
        matrix, diagonal = sums[name].double(), sums[name].diagonal().double()
        if float(diagonal.min()) < 0 or float(diagonal.max()) > largest:
            raise RefusedReplyError(f"sent a {name} with squares outside 0 to {largest:g}")
        least = -SINGLE * (1 + float(diagonal.sum()))
        if bool((matrix != matrix.T).any()) or float(torch.linalg.eigvalsh(matrix)[0]) < least:
            raise RefusedReplyError(f"sent a {name} that is no scatter")
        variances.append(diagonal)
    if bool((variances[1] > variances[0] * (1 + SINGLE) + SINGLE).any()):
        raise RefusedReplyError("sent a larger scatter within groups than over all images")


def refuse_class_sums(sums: StateDict, census: Census) -> None:
    """Refuses sums over labelled images that no features have.

    Raises:
        RefusedReplyError: if their counts are not those of the census, or a sum is too large.
    """
    known, positives = sums["known"], sums["positives"]
    if positives.tolist() != census["per_class"]:
        raise RefusedReplyError("sent sums of other numbers of images per class than its census")
    false = (known != known.round()) | (known < positives) | (known > count_of(census, "train"))
    if bool(false.any()):
        raise RefusedReplyError("sent sums of numbers of known labels that no images have")
    for counts, name in ((known, "known_sums"), (positives, "positive_sums")):
        if bool((sums[name].abs() > counts[:, None] * MAX_FEATURE).any()):
            raise RefusedReplyError(f"sent {name} of features above {MAX_FEATURE:g}")
    parts = {
        "positive_sums": (positives, sums["positive_sums"]),
        "known_sums": (known, sums["known_sums"]),
        "both sums": (known - positives, sums["known_sums"] - sums["positive_sums"]),
    }
    for name, (counts, total) in parts.items():
        # Cauchy-Schwarz: the square of the sum of n deviations is at most n times their scatter.
        middle = counts[:, None] * sums["mean"]  # (C, D)
        largest = (counts[:, None] * sums["scatter"].diagonal().clamp_min(0)).sqrt()
        rounding = SINGLE * (1 + middle.abs() + total.abs())
        if bool(((total - middle).abs() > largest * (1 + SINGLE) + rounding).any()):
            raise RefusedReplyError(f"sent {name} that are larger than its scatter allows")


def count_of(census: Census, name: str) -> int:
    """A single count of a census."""
    value = census[name]
    assert isinstance(value, int)
    return value
