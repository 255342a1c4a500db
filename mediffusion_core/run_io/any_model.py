"""Opens a trained model, whichever of the project's folders it is in."""

from pathlib import Path

import torch

from mediffusion_core.common.component_folder import STATE
from mediffusion_core.common.errors import UserError
from mediffusion_core.inference.joint_model import REASON, TrainedModel
from mediffusion_core.run_io.pipeline import JointDiffusionPipeline
from mediffusion_core.run_io.run_folder import RunFolder

INDEX = "model_index.json"


def load_any_model(folder: Path) -> TrainedModel:
    """Opens an exported pipeline, a run's folder `model`, or the folder of a run, on the CPU.

    Nothing is downloaded, and no file but safetensors and JSON is read.

    Raises:
        UserError: if the folder holds no model with a trained classifier, or a damaged one.
    """
    if not folder.is_dir():
        raise UserError(f"model {folder}: no such folder")
    if is_exported(folder):
        model = load_exported(folder, torch.device("cpu"))
    elif (folder / STATE).is_file():
        model = TrainedModel.load(folder, torch.device("cpu"))
    elif RunFolder(folder).model.is_dir():
        model = TrainedModel.load(RunFolder(folder).model, torch.device("cpu"))
    else:
        raise UserError(
            f"model {folder}: neither a folder that `fed-mediffusion export` wrote nor one of a run"
        )
    model.refuse_to_classify()
    return model


def is_exported(folder: Path) -> bool:
    """Whether a folder is an exported pipeline."""
    return (folder / INDEX).is_file()


def load_exported(folder: Path, device: torch.device) -> TrainedModel:
    """Opens an exported pipeline. Nothing is downloaded, and only safetensors and JSON are read.

    Raises:
        UserError: if the folder is damaged.
    """
    try:
        pipeline = JointDiffusionPipeline.from_pretrained(
            folder.resolve(), local_files_only=True, use_safetensors=True
        )
        pipeline.to(device)
        return pipeline.trained
    except UserError:
        raise
    except Exception as error:  # diffusers has no error of its own for a damaged folder
        reason = " ".join(str(error).split())[:REASON] or type(error).__name__
        raise UserError(f"model {folder} can't be opened ({reason})") from None
