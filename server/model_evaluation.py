"""A run that evaluates trained models at the sites and trains nothing."""

from collections.abc import Callable
from typing import Any

import torch

from mediffusion_core.common.errors import UserError
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.messaging.model_digest import model_digest
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    CALIBRATION,
    EVALUATE_MODEL,
    HEAD,
    UNET,
)
from mediffusion_core.models import encoder_half
from mediffusion_core.run_io.any_model import load_any_model
from mediffusion_core.settings import Settings
from server.messages import SiteError, StateDict
from server.model_sums import ModelSums, difference
from server.sites import Sites

MODEL, AGAINST = "model", "against"
"""Names of the two models in the figures."""


def evaluated_models(settings: Settings) -> dict[str, TrainedModel]:
    """The model of a run with `task=evaluation`, and the one to compare with.

    Raises:
        UserError: if one can't be opened, or its networks, noise process, images or classes are
            not those of the settings, by which the sites restore it.
    """
    folders = {MODEL: settings.evaluation.model, AGAINST: settings.evaluation.against}
    models = {name: load_any_model(one) for name, one in folders.items() if one is not None}
    wanted = _restored_by(settings, settings.data.classes, settings.data.multi_label)
    for name, model in models.items():
        if model_digest(model_components(model)) not in settings.evaluation.digests:
            raise UserError(
                f"evaluation.{name}={folders[name]}: evaluation.digests has another model; "
                "fed-mediffusion evaluate writes the digest of each"
            )
        own = _restored_by(model.settings, model.classes, model.multi_label)
        for part, value in wanted.items():
            if own[part] != value:
                raise UserError(
                    f"evaluation.{name}={folders[name]}: other {part} than in the settings, which "
                    "fed-mediffusion evaluate takes from the first model"
                )
    return models


class ModelEvaluation:
    """Asks all sites about one model or two, and pools their sums."""

    def __init__(self, sites: Sites, models: dict[str, TrainedModel]) -> None:
        """Takes the sites of the run, and the models of `evaluated_models`."""
        self._sites = sites
        self._models = models

    def execute(self, record: Callable[..., None]) -> dict[str, Any]:
        """The figures of each model, and of their difference.

        Args:
            record: Takes the figures of each step, as `RunFolder.record` does.

        Raises:
            SiteError: if too few sites answer.
        """
        census = {reply.site: dict(reply.census) for reply in self._sites.census()}
        record(stage="census", round=1, rounds=1, sites=census)
        sums: dict[str, ModelSums] = {}
        for number, (name, model) in enumerate(self._models.items(), 1):
            sums[name] = ModelSums(model.classes, model.temperature)
            self._sites.ask(EVALUATE_MODEL, number, model_components(model), take=sums[name].take)
            if not sums[name].sites:
                raise SiteError("no site has sent sums of the model")
        figures: dict[str, Any] = {name: one.figures() for name, one in sums.items()}
        if AGAINST in sums:
            figures["difference"] = self._difference(sums)
        set_aside = [
            {"site": one.site, "kind": one.kind, "reason": one.reason}
            for one in self._sites.take_set_aside()
        ]
        return {**figures, "census": census, "set_aside": set_aside}

    def _difference(self, sums: dict[str, ModelSums]) -> dict[str, Any] | None:
        """None if a site has answered for one of the two models alone."""
        first, second = sums[MODEL], sums[AGAINST]
        if first.sites != second.sites:
            return None
        return difference(first, second, self._models[MODEL].classes)


def model_components(model: TrainedModel) -> dict[str, StateDict]:
    """The model as it travels, without the UNet's half that does not classify."""
    return {
        AUTOENCODER: model.codec.state_dict(),
        UNET: encoder_half(model.joint.unet.state_dict()),
        HEAD: model.joint.head.state_dict(),
        CALIBRATION: {"temperature": torch.tensor([model.temperature], dtype=torch.float64)},
    }


def _restored_by(
    settings: Settings, classes: tuple[str, ...] | None, multi_label: bool
) -> dict[str, Any]:
    """All by which a model is restored and classifies, by the name that an error gives it."""
    data = settings.data
    return {
        "networks": settings.model,
        "noise process": settings.diffusion,
        "noise levels": settings.evaluation.noise_levels,
        "image size or augmentation": (data.image_size, data.channels, data.augmentation),
        "classes": (classes, multi_label),
    }
