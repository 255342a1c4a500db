"""Federated training of a baseline: rounds over the sites, model selection, and its figures."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.evaluation.calibration import best_temperature, temperature_losses
from mediffusion_core.evaluation.evaluator import Evaluator
from mediffusion_core.run_io.provenance import current_commit
from mediffusion_core.settings import ServerSettings, Settings
from mediffusion_core.training.adam_moments import fresh_moments, load_moments, read_moments
from server.selection import Evaluated, Selection, select
from server.strategy.aggregation import moving_average, site_weight, weighted_mean
from simulations.baselines.fine_tuned import FineTuned, at_image_size
from simulations.baselines.local_training import train_locally
from simulations.baselines.macro_auc import Bootstrap, bootstrapped_macro_auc
from simulations.baselines.pixel_classifier import WIDTHS, PixelClassifier, build_resnet
from simulations.baselines.semi_supervised.build import (
    build_objective,
    build_server,
    class_shares,
)
from simulations.baselines.semi_supervised.fedirm import add_dropout
from simulations.baselines.semi_supervised.server import StateDict, Update
from simulations.baselines.semi_supervised.settings import FedIRMSettings
from simulations.baselines.settings import BaselineSettings, FineTunedSettings
from simulations.baselines.task import BaselineTask

Progress = Callable[[int, int], None]
"""Called with (finished rounds, all rounds)."""

UNSUPPORTED: tuple[tuple[str, Callable[[Settings], bool]], ...] = (
    ("privacy.enabled", lambda s: s.privacy.enabled),
    ("federation.client_level.noise_multiplier", lambda s: s.federation.client_level.enabled),
    ("federation.fraction_train", lambda s: s.federation.fraction_train < 1),
    ("federation.compression", lambda s: s.federation.compression != "none"),
    ("federation.local_normalisation", lambda s: s.federation.local_normalisation),
    ("federation.server", lambda s: s.federation.server != ServerSettings()),
    ("federation.num_malicious_sites", lambda s: bool(s.federation.num_malicious_sites)),
)
"""Settings of the joint network's federation that baselines do not have."""


def refuse_unsupported(settings: Settings) -> None:
    """Checks that a baseline can be trained in the same federation as the joint network.

    Raises:
        UserError: naming the first setting that baselines do not have.
    """
    for name, is_set in UNSUPPORTED:
        if is_set(settings):
            raise UserError(f"{name}: the baselines of a study are trained without it")


class BaselineRun:
    """One network, trained at the sites in turn and averaged after each round."""

    def __init__(
        self,
        settings: Settings,
        baseline: BaselineSettings | FineTunedSettings,
        dataset: FederatedDataset,
        widths: tuple[int, ...] = WIDTHS,
    ) -> None:
        """Draws the first weights from the seed of the settings.

        Args:
            settings: Of the run that the baseline is compared with.
            baseline: Of the baseline.
            dataset: The images as `settings` partition them.
            widths: Of a ResNet, as `build_resnet` takes them.

        Raises:
            UserError: as `refuse_unsupported`, or if what the network needs is not installed.
        """
        refuse_unsupported(settings)
        if isinstance(baseline, FineTunedSettings):
            dataset = at_image_size(dataset, baseline.image_size)
        self._settings = settings
        self._baseline = baseline
        self._dataset = dataset
        store = dataset.store
        self._task = BaselineTask(
            baseline, settings.data.augmentation, store.multi_label, settings.training.precision
        )
        self._sites = [dataset.train(site) for site in range(len(dataset.clients))]
        shares = class_shares(self._sites)
        self._objectives = [build_objective(self._task, shares) for _ in self._sites]
        self._server = build_server(self._task, self._objectives, self._sites, settings.seed)
        torch.manual_seed(derive_seed(settings.seed, "weights"))
        channels, num_classes = settings.data.channels, len(store.classes)
        self._network = (
            FineTuned(baseline.image_size, num_classes)
            if isinstance(baseline, FineTunedSettings)
            else build_resnet(channels, num_classes, baseline.stem_stride, baseline.norm, widths)
        )
        if isinstance(baseline.consistency, FedIRMSettings):
            add_dropout(self._network, baseline.consistency.dropout)
        self._weights: StateDict = _copied(self._network.state_dict())
        self._moments: StateDict = fresh_moments(self._network)
        self._average = self._weights
        validation = [dataset.validation(site) for site in range(len(dataset.clients))]
        self._validation = [images for images in validation if len(images)]

    def execute(self, progress: Progress) -> tuple[dict[str, Any], Tensor]:
        """Trains, and evaluates the selected model on the public test set.

        Returns:
            The figures, with those of `Evaluator.classification`, and the logits (N, classes) of
            the test images.
        """
        begun = time.monotonic()
        model, selected = self.train(progress)
        evaluator = Evaluator.of_dataset(self._settings, self._dataset)
        logits = evaluator.logits(model)
        figures = {
            **evaluator.classification(model, logits),
            **selected,
            "parameters": sum(p.numel() for p in self._network.parameters()),
            "seconds": round(time.monotonic() - begun, 1),
            "seed": self._settings.seed,
            "commit": current_commit(),
        }
        return figures, logits

    def train(self, progress: Progress) -> tuple[PixelClassifier, dict[str, Any]]:
        """Trains all rounds and selects a model by the validation AUC.

        Returns:
            The selected model, with its `auc_pooled` and `selected_round`.
        """
        selection: Selection | None = None
        kept, kept_auc, temperature = self._average, math.nan, 1.0
        for number in range(1, self._baseline.rounds + 1):
            self._round(number)
            progress(number, self._baseline.rounds)
            if number % self._baseline.every == 0 or number == self._baseline.rounds:
                validated, best = self._validate(number)
                selection = select(selection, validated)
                if selection.kept == number:
                    kept, kept_auc, temperature = self._average, validated.auc, best
        assert selection is not None
        model = self._classifier(kept)
        model.temperature = temperature
        return model, {"auc_pooled": kept_auc, "selected_round": selection.kept}

    def _round(self, number: int) -> None:
        """Trains at the sites from the same weights, and averages."""
        states, moments = [], []
        for group, sites in enumerate(self._server.groups(number)):
            updates = [self._trained(site, number, group) for site in sites]
            weights = self._server.weights(updates)
            if any(weights):  # with a fraction of an epoch a round, some rounds have no step
                states.append(weighted_mean([update.state for update in updates], weights))
                moments.append(weighted_mean([update.moments for update in updates], weights))
        if states:
            mean = weighted_mean(states, [1.0] * len(states))
            self._weights = self._server.finish(mean, number)
            self._moments = weighted_mean(moments, [1.0] * len(moments))
        decay = self._baseline.ema_decay
        self._average = moving_average(self._average, self._weights, decay, number)

    def _trained(self, site: int, number: int, group: int) -> Update:
        """The update of a site; it trains once for each group of a round that it is in."""
        partition = self._dataset.clients[site]
        self._network.load_state_dict(dict(self._weights))
        optimizer = self._task.optimizer(self._network)
        load_moments(optimizer, self._network, self._moments)
        # This key keeps the random numbers of published figures.
        key = ("rival", partition.site, number, *((group,) if group else ()))
        report = train_locally(
            self._network,
            optimizer,
            self._sites[site],
            self._task,
            round_number=number,
            seed=derive_seed(self._settings.seed, *key),
            objective=self._objectives[site],
        )
        by = "labelled_seen" if self._baseline.consistency is None else "images_seen"
        return Update(
            site,
            _copied(self._network.state_dict()),
            read_moments(optimizer, self._network),
            site_weight(vars(report), by, self._settings.federation.weighting),
        )

    def _validate(self, number: int) -> tuple[Evaluated, float]:
        """The pooled validation AUC of the averaged weights, and their temperature."""
        model, dataset = self._classifier(self._average), self._dataset
        pixels = [images.take(torch.arange(len(images))) for images in self._validation]
        logits = torch.cat([model.logits(taken) for taken in pixels])
        targets = torch.cat([images.targets for images in self._validation])
        groups = [group for images in self._validation for group in dataset.groups(images.rows)]
        bootstrap = Bootstrap(
            groups,
            self._settings.evaluation.num_bootstraps,
            derive_seed(self._settings.seed, "bootstrap"),
        )
        auc = bootstrapped_macro_auc(logits, targets, model.multi_label, bootstrap)
        losses = temperature_losses(logits, targets, model.multi_label)
        return Evaluated(number, auc.value, auc.draws.tolist()), best_temperature(losses)

    def _classifier(self, weights: StateDict) -> PixelClassifier:
        self._network.load_state_dict(dict(weights))
        task = self._task
        return PixelClassifier(
            self._network, task.multi_label, task.orientation_free, task.precision
        )


def _copied(weights: StateDict) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}
