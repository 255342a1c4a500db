"""A completed run's model as a folder that others can load with diffusers."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mediffusion_core.common.errors import UserError
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.reporting.model_card import model_card
from mediffusion_core.run_io.pipeline import JointDiffusionPipeline
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import Settings


def export_run(run: Path, output: Path) -> Path:
    """Writes the selected model of a run as a `JointDiffusionPipeline` with a model card.

    The folder appears whole or not at all. It names no site and no path, and holds no picture:
    a drawn image may be one that the model has been trained on.

    Args:
        run: Folder of a completed run.
        output: The folder to write.

    Returns:
        The folder.

    Raises:
        UserError: if the run is not there or not completed, or the folder to write is there.
    """
    summary = completed_summary(run)
    if output.exists():
        raise UserError(f"{output} exists; remove it, or name a folder that does not exist")
    model = TrainedModel.load(RunFolder(run).model, torch.device("cpu"))
    pipeline = JointDiffusionPipeline.of(model, without_sites(model.settings))
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        pipeline.save_pretrained(temporary)
        text = model_card(summary, model.settings, model.classes, model.multi_label)
        card = temporary / "README.md"
        card.write_text(text, encoding="utf-8")
        for weights in temporary.rglob("*.safetensors"):  # written for their owner alone
            weights.chmod(card.stat().st_mode)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def completed_summary(run: Path) -> Mapping[str, Any]:
    """The figures of a completed run.

    Raises:
        UserError: if the run is not there, or not completed.
    """
    if not run.is_dir():
        raise UserError(f"run folder {run} does not exist")
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        status = summary.get("status")
    except FileNotFoundError:
        summary, status = {}, "not ended"
    except (ValueError, AttributeError):
        raise UserError(f"{run / 'summary.json'} cannot be read as a run's summary") from None
    if status != "completed":
        raise UserError(
            f"{run} is no completed run (status {status}); "
            f"continue it with fed-mediffusion simulate --resume {run}"
        )
    return dict(summary)


def without_sites(settings: Settings) -> Settings:
    """The settings without what names single sites: their labels, and who trains."""
    data = settings.data.model_copy(update={"labelled_fraction_by_site": {}})
    named = {"only_site": None, "left_out_site": None}
    federation = settings.federation.model_copy(update=named)
    return settings.model_copy(update={"data": data, "federation": federation})
