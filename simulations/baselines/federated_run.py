"""A rival's run: rounds over the sites, the model that validation patients prefer, its figures."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.augmentation import turns_and_flips
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.evaluation.calibration import best_temperature, temperature_losses
from mediffusion_core.evaluation.classification import (
    bootstrap_auc,
    class_scores,
    exact_auc,
    macro,
    macro_draws,
)
from mediffusion_core.evaluation.evaluator import Evaluator
from mediffusion_core.run_io.provenance import current_commit
from mediffusion_core.settings import ServerSettings, Settings
from mediffusion_core.training.adam_moments import fresh_moments, load_moments, read_moments
from server.selection import Evaluated, Selection, select
from server.strategy.aggregation import moving_average, site_weight, weighted_mean
from simulations.baselines.local_training import rival_optimizer, train_locally
from simulations.baselines.pixel_classifier import WIDTHS, PixelClassifier, build_resnet
from simulations.baselines.settings import RivalSettings

StateDict = Mapping[str, Tensor]
Progress = Callable[[int, int], None]
"""Told (rounds done, rounds in all)."""


IGNORED: tuple[tuple[str, Callable[[Settings], bool]], ...] = (
    ("privacy.enabled", lambda s: s.privacy.enabled),
    ("federation.client_level.noise_multiplier", lambda s: s.federation.client_level.enabled),
    ("federation.fraction_train", lambda s: s.federation.fraction_train < 1),
    ("federation.compression", lambda s: s.federation.compression != "none"),
    ("federation.local_normalisation", lambda s: s.federation.local_normalisation),
    ("federation.server", lambda s: s.federation.server != ServerSettings()),
)


def refuse_what_rivals_ignore(settings: Settings) -> None:
    """Refuses what would make a rival's run another federation than the joint network's.

    Raises:
        UserError: naming the first such setting.
    """
    for name, asked in IGNORED:
        if asked(settings):
            raise UserError(f"{name}: the rivals of a study are trained without it")


class RivalRun:
    """One network, trained at the sites in turn and averaged after each round."""

    def __init__(
        self,
        settings: Settings,
        rival: RivalSettings,
        hospitals: FederatedDataset,
        widths: tuple[int, ...] = WIDTHS,
    ) -> None:
        """Takes the images as the settings deal them; draws the first weights from their seed.

        Raises:
            UserError: as `refuse_what_rivals_ignore`.
        """
        refuse_what_rivals_ignore(settings)
        self._settings = settings
        self._rival = rival
        self._hospitals = hospitals
        store = hospitals.store
        torch.manual_seed(derive_seed(settings.seed, "weights"))
        self._network = build_resnet(
            settings.data.channels, len(store.classes), rival.stem_stride, rival.norm, widths
        )
        self._weights: StateDict = _copied(self._network.state_dict())
        self._moments: StateDict = fresh_moments(self._network)
        self._average = self._weights
        held_out = [hospitals.validation(site) for site in range(len(hospitals.shards))]
        self._validation = [images for images in held_out if len(images)]

    def execute(self, progress: Progress) -> tuple[dict[str, Any], Tensor]:
        """Trains, and judges the model that is selected on the public test set.

        Returns:
            The figures, those of `Judge.classification` among them, and the logits (N, classes) of
            the test images.
        """
        begun = time.monotonic()
        model, selected = self.train(progress)
        judge = Evaluator.of_hospitals(self._settings, self._hospitals)
        logits = judge.logits(model)
        figures = {
            **judge.classification_of(model, logits),
            **selected,
            "parameters": sum(p.numel() for p in self._network.parameters()),
            "seconds": round(time.monotonic() - begun, 1),
            "seed": self._settings.seed,
            "commit": current_commit(),
        }
        return figures, logits

    def train(self, progress: Progress) -> tuple[PixelClassifier, dict[str, Any]]:
        """Trains.

        Returns:
            The model that the validation patients prefer, with `auc_pooled` and `selected_round`.
        """
        selection: Selection | None = None
        kept, kept_auc, temperature = self._average, math.nan, 1.0
        for number in range(1, self._rival.rounds + 1):
            self._round(number)
            progress(number, self._rival.rounds)
            if number % self._rival.every == 0 or number == self._rival.rounds:
                judged, best = self._validate(number)
                selection = select(selection, judged)
                if selection.kept == number:
                    kept, kept_auc, temperature = self._average, judged.auc, best
        assert selection is not None
        model = self._classifier(kept)
        model.temperature = temperature
        return model, {"auc_pooled": kept_auc, "selected_round": selection.kept}

    def _round(self, number: int) -> None:
        """Each site's round from the same weights, and the mean by labelled images or by all."""
        rival, hospitals = self._rival, self._hospitals
        by = "labelled_seen" if rival.consistency is None else "images_seen"
        weighting = self._settings.federation.weighting
        states, moments, weights = [], [], []
        for index, shard in enumerate(hospitals.shards):
            self._network.load_state_dict(dict(self._weights))
            optimizer = rival_optimizer(self._network, rival)
            load_moments(optimizer, self._network, self._moments)
            report = train_locally(
                self._network,
                optimizer,
                hospitals.train(index),
                rival,
                augmentation=self._settings.data.augmentation,
                multi_label=hospitals.store.multi_label,
                precision=self._settings.training.precision,
                round_number=number,
                seed=derive_seed(self._settings.seed, "rival", shard.site, number),
            )
            states.append(_copied(self._network.state_dict()))
            moments.append(read_moments(optimizer, self._network))
            weights.append(site_weight(vars(report), by, weighting))
        if any(weights):  # in some rounds no site is due a step
            self._weights = weighted_mean(states, weights)
            self._moments = weighted_mean(moments, weights)
        self._average = moving_average(self._average, self._weights, rival.ema_decay, number)

    def _validate(self, number: int) -> tuple[Evaluated, float]:
        """The averaged weights on the sites' validation patients, pooled, and their temperature."""
        model, hospitals = self._classifier(self._average), self._hospitals
        pixels = [images.take(torch.arange(len(images))) for images in self._validation]
        logits = torch.cat([model.logits(taken) for taken in pixels])
        targets = torch.cat([images.targets for images in self._validation])
        groups = [group for images in self._validation for group in hospitals.groups(images.rows)]
        scores = class_scores(logits, model.multi_label)
        per_class = exact_auc(scores, targets)
        draws = bootstrap_auc(
            scores,
            targets,
            groups,
            self._settings.evaluation.num_bootstraps,
            derive_seed(self._settings.seed, "bootstrap"),
        )
        judged = Evaluated(number, macro(per_class), macro_draws(per_class, draws).tolist())
        losses = temperature_losses(logits, targets, model.multi_label)
        return judged, best_temperature(losses)

    def _classifier(self, weights: StateDict) -> PixelClassifier:
        self._network.load_state_dict(dict(weights))
        return PixelClassifier(
            self._network,
            self._hospitals.store.multi_label,
            turns_and_flips(self._settings.data.augmentation),
            self._settings.training.precision,
        )


def _copied(weights: StateDict) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}
