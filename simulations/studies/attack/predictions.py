"""Attacks with the exported pipeline, from its probabilities alone."""

from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from torch import Tensor

from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.membership_inference import (
    BATCH,
    Losses,
    by_unit,
    entropies,
    label_entropies,
)
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.run_io.export import without_sites
from mediffusion_core.run_io.pipeline import JointDiffusionPipeline
from simulations.studies.attack.candidates import Candidates, Scored
from simulations.studies.attack.model_losses import told

USER = "user of the exported pipeline: has its probabilities"
LABELS, ALONE = "predictions and labels", "predictions"


def prediction_attacks(
    model: TrainedModel, candidates: Candidates, console: Console
) -> dict[str, Scored]:
    """The attacks by name, on images with a label, which trained the classifier.

    Args:
        model: The selected model of a run.
        candidates: Members and non-members.
        console: Shows the progress.
    """
    candidates = candidates.labelled()
    with TemporaryDirectory(prefix="fed-mediffusion-attack-") as folder:
        JointDiffusionPipeline.of(model, without_sites(model.settings)).save_pretrained(folder)
        pipeline = JointDiffusionPipeline.from_pretrained(folder)
    multi_label = bool(pipeline.head.config.multi_label)
    with told(console, "predictions", len(candidates)) as on_batch:

        def scores(images: ImageSet) -> Losses:
            found = [torch.zeros(0, 2)]
            for chosen in torch.arange(len(images)).split(BATCH):
                if len(chosen):
                    made = pipeline.classify(images.take(chosen))
                    found.append(_scores(made, images.targets[chosen], multi_label))
                    on_batch(len(chosen))
            return by_unit(torch.cat(found), candidates.units(images))  # (U, 2)

        both = candidates.scored(USER, scores)
    return both.columns((LABELS, ALONE))


def _scores(probabilities: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    return torch.stack(
        [
            label_entropies(probabilities, targets, multi_label),
            entropies(probabilities, multi_label),
        ],
        dim=1,
    )
