"""Evaluation of the averaged global model: its figures and pictures, and whether it is selected."""

import shutil
from math import nan
from pathlib import Path
from typing import Any

import torch

from mediffusion_core.evaluation.evaluator import Evaluator
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.models import LatentCodec
from mediffusion_core.reporting.pictures import (
    save_counterfactual_panel,
    save_reconstructions,
    save_sample_grid,
)
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import Settings
from server.pooled import PooledValidation
from server.selection import Evaluated, Selection, select
from server.state import RunState


class EvaluationRounds:
    """Evaluates the models of one run, and keeps the selected one in the run's folder."""

    def __init__(
        self, settings: Settings, evaluator: Evaluator, folder: RunFolder, device: torch.device
    ) -> None:
        """Takes the run's settings, its public test set, its folder, and where to compute."""
        self._settings = settings
        self._evaluator = evaluator
        self._folder = folder
        self._device = device

    def reconstruction(self, state: RunState) -> float:
        """The autoencoder's PSNR in dB on test images; draws some of them."""
        codec: LatentCodec = state.codec(self._settings).to(self._device)
        psnr, shown = self._evaluator.reconstruction(codec)
        path = self._folder.pictures / "reconstructions.png"
        save_reconstructions(shown.images, shown.made, shown.psnr.numpy(), path)
        return psnr

    def figures(
        self, state: RunState, number: int, pooled: PooledValidation
    ) -> tuple[TrainedModel, dict[str, Any]]:
        """The model after a joint round, and all its figures; draws samples and counterfactuals.

        Args:
            state: Of the run.
            number: Of the joint round; 0 is the untrained model, which has no counterfactuals.
            pooled: The model's validation, which also gives its temperature.
        """
        evaluator = self._evaluator
        classes, multi_label = evaluator.classes, evaluator.multi_label
        model = state.model(self._settings, classes, multi_label, self._device, pooled.temperature)
        pictures = self._pictures(number)
        pictures.mkdir(parents=True, exist_ok=True)
        generation, samples = evaluator.generation(model)
        if samples is not None:
            save_sample_grid(samples, pictures / "samples.png")
        figures = {**evaluator.classification(model), **pooled.figures, **generation}
        if number:
            figures["counterfactual"], rows = evaluator.counterfactuals(model)
            if rows:
                save_counterfactual_panel(rows, pictures / "counterfactuals.png")
        return model, figures

    def select(
        self,
        selection: Selection | None,
        model: TrainedModel,
        number: int,
        pooled: PooledValidation,
    ) -> Selection:
        """The selection with this model; where it is selected, its folder and pictures are kept."""
        # The AUC of a classifier that is not trained says nothing.
        classifies = bool(self._settings.training.joint.classification_weight)
        auc = pooled.figures["auc_pooled"] if classifies else nan
        selected = select(selection, Evaluated(number, auc, pooled.draws.tolist()))
        if selected.kept == number:
            model.save(self._folder.model)
            for picture in self._pictures(number).iterdir():
                shutil.copyfile(picture, self._folder.pictures / picture.name)
        return selected

    def _pictures(self, number: int) -> Path:
        return self._folder.pictures / "rounds" / f"{number:04d}"
