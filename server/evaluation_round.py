"""Evaluation of the averaged global model: its figures and pictures, and whether it is selected."""

import shutil
from math import nan
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.evaluation.evaluator import Evaluator
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.models import LatentCodec
from mediffusion_core.reporting.counterfactual_pair import PAIR
from mediffusion_core.reporting.pictures import (
    save_counterfactual_pair,
    save_counterfactual_panel,
    save_curves,
    save_reconstructions,
    save_sample_grid,
)
from mediffusion_core.run_io.run_folder import EVALUATION, RunFolder
from mediffusion_core.settings import Settings
from server.checkpoints import selected_state
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
        self._reconstructions = folder.pictures / "reconstructions.png"
        self._latents: Tensor | None = None

    def reconstruction(self, state: RunState) -> float:
        """The autoencoder's PSNR in dB on test images; draws some of them."""
        codec: LatentCodec = state.codec(self._settings).to(self._device)
        psnr, shown = self._evaluator.reconstruction(codec)
        save_reconstructions(shown.images, shown.made, shown.psnr.numpy(), self._reconstructions)
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
        model = self._model(state, pooled.temperature)
        pictures = self._folder.round_pictures(number)
        pictures.mkdir(parents=True, exist_ok=True)
        generation, samples = evaluator.generation(model)
        if samples is not None:
            save_sample_grid(samples, pictures / "samples.png")
        if self._latents is None:  # the joint stage leaves the codec as it is
            self._latents = evaluator.encode(model)
        classification = evaluator.classification(model, model.logits(self._latents))
        figures = {**classification, **pooled.figures, **generation}
        if number:
            figures["counterfactual"], rows = evaluator.counterfactuals(model)
            if rows:
                save_counterfactual_panel(rows, pictures / "counterfactuals.png")
                save_counterfactual_pair(rows, pictures / PAIR)
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
            self._keep(model, number)
        return selected

    def put_back(self, state: RunState) -> None:
        """Makes the folder's model and pictures those of a run that continues.

        An evaluation whose round was not saved may have replaced them, and a run that was set back
        has none.
        """
        if state.autoencoder_rounds and not self._reconstructions.exists():
            self.reconstruction(state)
        history, curves = self._folder.history(), self._folder.pictures / "curves.png"
        if state.evaluated >= 0 and not curves.exists():
            save_curves(history, curves)
        selected = state.selection and selected_state(self._folder, state.selection)
        if state.selection and selected:
            number = state.selection.kept
            evaluated = {line["round"]: line for line in history if line["stage"] == EVALUATION}
            temperature = evaluated[number]["calibration"]["temperature"]
            self._keep(self._model(selected, temperature), number)

    def _model(self, state: RunState, temperature: float) -> TrainedModel:
        classes, multi_label = self._evaluator.classes, self._evaluator.multi_label
        return state.model(self._settings, classes, multi_label, self._device, temperature)

    def _keep(self, model: TrainedModel, number: int) -> None:
        """Writes a round's model and pictures to where a run has those that are selected."""
        model.save(self._folder.model)
        for picture in self._folder.round_pictures(number).glob("*.*"):
            shutil.copyfile(picture, self._folder.pictures / picture.name)
