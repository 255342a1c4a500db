"""A site's sums over its patients for a model that was trained elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.site import Site
from mediffusion_core.common.errors import RefusedError, UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.calibration import reliability_sums
from mediffusion_core.evaluation.classification import (
    bootstrap_counts,
    class_scores,
    logit_thresholds,
    threshold_counts,
)
from mediffusion_core.evaluation.subgroups import members, suppressed
from mediffusion_core.inference.classify import logits_of
from mediffusion_core.inference.joint_model import restore_classifier
from mediffusion_core.messaging.model_digest import model_digest
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    BOOTSTRAP_THRESHOLDS,
    CALIBRATION,
    HEAD,
    UNET,
)
from mediffusion_core.models import class_probabilities, untrained_codec

Components = Mapping[str, Mapping[str, Tensor]]

TOGETHER = 64
"""Images that are encoded and classified at once."""


@dataclass(frozen=True)
class EvaluatedImages:
    """The images that a site evaluates models on; N images.

    Attributes:
        images: With their labels. A class that too few patients have a label of has none.
        patients: Patient or lesion of each image, N names.
        attributes: By attribute, the subgroup of each image.
    """

    images: ImageSet
    patients: tuple[str, ...]
    attributes: Mapping[str, NDArray[np.str_]]

    @classmethod
    def of(cls, site: Site) -> "EvaluatedImages":
        """The site's images, as the run asks for and the site policy allows.

        Raises:
            RefusedError: if they are of fewer patients than `policy.min_patients`, or the run is
                private.
            UserError: if the model's classes are not those of the site, in their order.
        """
        data, dataset = site.settings.data, site.dataset
        if site.settings.privacy.enabled:
            raise RefusedError("in a private run no exact counts of a model leave")
        if data.classes is not None and data.classes != dataset.store.classes:
            held, wanted = ", ".join(dataset.store.classes), ", ".join(data.classes)
            raise UserError(f"the images are of the classes {held}, the model is of {wanted}")
        images = dataset.evaluated(site.index, site.settings.evaluation.patients)
        patients = dataset.groups(images.rows)
        least, there = site.policy.min_patients, len(set(patients))
        if there < least:
            raise RefusedError(f"{there} patients are fewer than policy.min_patients {least}")
        for targets in images.targets.T:
            known = ~targets.isnan()
            named = {name for name, has in zip(patients, known.tolist(), strict=True) if has}
            if len(named) < least:
                targets[:] = torch.nan
        attributes = {name: given[images.rows] for name, given in dataset.attributes.items()}
        return cls(images, patients, attributes)

    def census(self) -> dict[str, int | list[int]]:
        """How many images and patients there are."""
        return {"images": len(self.images), "patients": len(set(self.patients))}

    def grouped(self, minimum: int) -> Tensor:
        """Labels in each subgroup, (G, N, C): nan for images outside, and where suppressed."""
        targets = self.images.targets
        inside = members(self.attributes, len(targets))  # (G, N)
        shown = targets.expand(len(inside), *targets.shape).clone()
        shown[~inside] = torch.nan
        for number, known in enumerate((~targets.isnan()).T.numpy()):
            attributes = {name: given[known] for name, given in self.attributes.items()}
            patients = [name for name, has in zip(self.patients, known, strict=True) if has]
            shown[suppressed(attributes, patients, minimum), :, number] = torch.nan
        return shown


def model_sums(site: Site, components: Components) -> dict[str, Tensor]:
    """Sums over the site's evaluated patients and over their subgroups.

    Bootstraps draw the same patients for each model of a run, so that differences are paired.

    Args:
        site: Whose patients.
        components: Those of `protocol.MODEL`.

    Returns:
        Sums to be added up over sites: confusion `counts` (C, T, 2, 2), `bootstraps` of them
        (B, C, T', 2, 2), `subgroups` (G, C, T, 2, 2) in the order of `SUBGROUPS`, with zeros for a
        suppressed one, `reliability` (2, 15, 3) and `squares` (2, 1) of probabilities
        without and with the model's temperature.

    Raises:
        RefusedError: as `EvaluatedImages.of`, and for a model that the run's settings do not name.
        UserError: if the temperature is not above 0.
    """
    evaluated, settings = EvaluatedImages.of(site), site.settings
    if (digest := model_digest(components)) not in settings.evaluation.digests:
        raise RefusedError(f"the server sent a model {digest}, which is not in evaluation.digests")
    temperature = float(components[CALIBRATION]["temperature"])
    if not 0 < temperature < float("inf"):
        raise UserError(f"the model's temperature is {temperature:g}, allowed are those above 0")
    multi_label, targets = site.dataset.store.multi_label, evaluated.images.targets
    logits = _logits(site, components, evaluated.images)
    scores = class_scores(logits, multi_label)
    thresholds = logit_thresholds(settings.evaluation.num_thresholds)
    probabilities = [class_probabilities(logits / t, multi_label) for t in (1.0, temperature)]
    calibration = [reliability_sums(one, targets, multi_label) for one in probabilities]
    reliability, squares = zip(*calibration, strict=True)
    subgroups = evaluated.grouped(site.policy.min_patients)
    return {
        "counts": threshold_counts(scores, targets, thresholds),
        "bootstraps": bootstrap_counts(
            scores,
            targets,
            evaluated.patients,
            logit_thresholds(BOOTSTRAP_THRESHOLDS),
            settings.evaluation.num_bootstraps,
            derive_seed(settings.seed, "bootstrap", site.name),
        ),
        "subgroups": torch.stack([threshold_counts(scores, one, thresholds) for one in subgroups]),
        "reliability": torch.stack(reliability),
        "squares": torch.stack(squares),
    }


@torch.no_grad()
def _logits(site: Site, components: Components, images: ImageSet) -> Tensor:
    """Logits (N, C) of images, on the CPU."""
    settings, classes = site.settings, images.targets.shape[1]
    codec = untrained_codec(settings.model.autoencoder, settings.data.channels)
    codec.load_state_dict(dict(components[AUTOENCODER]))
    codec.to(site.device).eval()
    joint = restore_classifier(settings, classes, components[UNET], components[HEAD])
    joint.to(site.device).eval()
    report = site.progress("evaluation", 1)
    found = []
    for part in torch.arange(len(images)).split(TOGETHER):
        latents = codec.encode(images.take(part).to(site.device))
        found.append(logits_of(settings, joint, latents))
        report(int(part[-1]) + 1, len(images), float("nan"))
    return torch.cat(found)
