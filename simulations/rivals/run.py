"""A rival's run: rounds over the sites, the model that validation patients prefer, its figures."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.artifacts.provenance import current_commit
from mediffusion_core.data.hospitals import Hospitals, open_hospitals
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.calibration import best_temperature, temperature_losses
from mediffusion_core.evaluation.classification import (
    bootstrap_auc,
    class_scores,
    exact_auc,
    macro,
    macro_draws,
)
from mediffusion_core.evaluation.judge import Judge
from mediffusion_core.settings import Settings
from mediffusion_core.training.augmentation import turns_and_flips
from mediffusion_core.training.local import derive_seed
from mediffusion_core.training.moments import fresh_moments, load_moments, read_moments
from server.aggregation import moving_average, weighted_mean
from server.selection import Judged, Selection, select
from simulations.rivals.local import train_locally
from simulations.rivals.network import PixelClassifier, build_resnet
from simulations.rivals.settings import RivalSettings

StateDict = Mapping[str, Tensor]
Progress = Callable[[int, int], None]
"""Told (rounds done, rounds in all)."""


class RivalRun:
    """One network, trained at the sites in turn and averaged after each round."""

    def __init__(self, settings: Settings, rival: RivalSettings) -> None:
        """Opens the images as the settings deal them; draws the first weights from their seed."""
        self._settings = settings
        self._rival = rival
        self._hospitals: Hospitals = open_hospitals(settings)
        store = self._hospitals.store
        torch.manual_seed(derive_seed(settings.seed, "weights"))
        self._network = build_resnet(settings.data.channels, len(store.classes), rival.stem_stride)
        self._weights: StateDict = _copied(self._network.state_dict())
        self._moments: StateDict = fresh_moments(self._network)
        self._average = self._weights
        self._validation = [
            self._hospitals.validation(site) for site in range(len(self._hospitals.shards))
        ]

    def execute(self, progress: Progress) -> tuple[dict[str, Any], Tensor]:
        """Trains, and judges the model that is selected on the public test set.

        Returns:
            The figures, those of `Judge.classification` among them, and the logits (N, classes) of
            the test images.
        """
        begun = time.monotonic()
        selection: Selection | None = None
        kept, kept_auc = self._average, math.nan
        for number in range(1, self._rival.rounds + 1):
            self._round(number)
            progress(number, self._rival.rounds)
            if number % self._rival.every == 0 or number == self._rival.rounds:
                judged = self._validate(number)
                selection = select(selection, judged)
                if selection.kept == number:
                    kept, kept_auc = self._average, judged.auc
        assert selection is not None
        model = self._classifier(kept)
        model.temperature = best_temperature(self._temperature_losses(model))
        test = self._hospitals.test()
        figures = {
            **self._judge(test).classification(model),
            "auc_pooled": kept_auc,
            "selected_round": selection.kept,
            "parameters": sum(p.numel() for p in self._network.parameters()),
            "seconds": round(time.monotonic() - begun, 1),
            "seed": self._settings.seed,
            "commit": current_commit(),
        }
        return figures, model.logits(test.take(torch.arange(len(test))))

    def _round(self, number: int) -> None:
        """Each site's round from the same weights, and the mean by labelled images or by all."""
        rival, hospitals = self._rival, self._hospitals
        states, moments, weights = [], [], []
        for index, shard in enumerate(hospitals.shards):
            self._network.load_state_dict(dict(self._weights))
            optimizer = torch.optim.AdamW(
                self._network.parameters(), weight_decay=rival.weight_decay, fused=True
            )
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
            learned_from_all = rival.consistency is not None
            weights.append(report.images_seen if learned_from_all else report.labelled_seen)
        if any(weights):  # in some rounds no site is due a step
            self._weights = weighted_mean(states, weights)
            self._moments = weighted_mean(moments, weights)
        self._average = moving_average(self._average, self._weights, rival.ema_decay, number)

    def _validate(self, number: int) -> Judged:
        """The averaged weights on the sites' validation patients, pooled."""
        model, hospitals = self._classifier(self._average), self._hospitals
        sets = [images for images in self._validation if len(images)]
        logits = [model.logits(images.take(torch.arange(len(images)))) for images in sets]
        scores = class_scores(torch.cat(logits), hospitals.store.multi_label)
        targets = torch.cat([images.targets for images in sets])
        groups = [group for images in sets for group in hospitals.groups(images.rows)]
        per_class = exact_auc(scores, targets)
        draws = bootstrap_auc(
            scores,
            targets,
            groups,
            self._settings.evaluation.num_bootstraps,
            derive_seed(self._settings.seed, "bootstrap"),
        )
        return Judged(number, macro(per_class), macro_draws(per_class, draws).tolist())

    def _temperature_losses(self, model: PixelClassifier) -> Tensor:
        return torch.stack(
            [
                temperature_losses(
                    model.logits(images.take(torch.arange(len(images)))),
                    images.targets,
                    model.multi_label,
                )
                for images in self._validation
                if len(images)
            ]
        ).sum(dim=0)

    def _classifier(self, weights: StateDict) -> PixelClassifier:
        self._network.load_state_dict(dict(weights))
        return PixelClassifier(
            self._network,
            self._hospitals.store.multi_label,
            turns_and_flips(self._settings.data.augmentation),
            self._settings.training.precision,
        )

    def _judge(self, test: ImageSet) -> Judge:
        hospitals = self._hospitals
        return Judge(
            self._settings,
            test,
            hospitals.groups(hospitals.test_rows),
            hospitals.site_of_test(),
            hospitals.store.classes,
            hospitals.store.multi_label,
        )


def _copied(weights: StateDict) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}
