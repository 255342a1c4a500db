"""What a finished run's model does for a user: predict, sample, explain."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mediffusion_core.common.device import resolve_device
from mediffusion_core.common.errors import UserError
from mediffusion_core.counterfactuals.target_by_name import class_indices, target_for
from mediffusion_core.data.store.images import SUFFIXES, ImageError, decode, fit
from mediffusion_core.evaluation.counterfactual_panel import CounterfactualRow, make_counterfactuals
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.reporting.pictures import (
    save_counterfactual_panel,
    save_sample_grid,
)

BATCH = 64


def predict_folder(run: Path, folder: Path, output: Path, device: str) -> Path:
    """Classifies a folder's images into a CSV, one row an image; unreadable ones are named.

    Raises:
        UserError: if the folder is missing, or holds no image that can be read.
    """
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist")
    model = _load(run, device)
    console = Console(stderr=True, soft_wrap=True)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    rows: list[list[str]] = []
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    for batch in track(batches, "predicting", console=console, transient=True):
        readable: list[tuple[Path, Tensor]] = []
        for path in batch:
            try:
                readable.append((path, _read(model, path)))
            except ImageError as error:
                console.print(f"left out {path.relative_to(folder)}: {error}", markup=False)
        if readable:
            probabilities = model.classify(torch.stack([image for _, image in readable]))
            rows += [
                [str(path.relative_to(folder)), *(f"{p:.6f}" for p in row)]
                for (path, _), row in zip(readable, probabilities.tolist(), strict=True)
            ]
    if not rows:
        raise UserError(f"no readable image in {folder} ({', '.join(SUFFIXES)})")
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", *model.classes], *rows])
    return output


def draw_samples(run: Path, output: Path, count: int, steps: int, seed: int, device: str) -> Path:
    """Draws images into a folder: one PNG each, and `grid.png` of up to 64 of them."""
    model = _load(run, device)
    images = model.sample(count, steps, seed)
    output.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels).save(
            output / f"seed-{seed}_{number:05d}.png"
        )
    save_sample_grid(images[:64], output / "grid.png")
    return output


def explain_image(
    run: Path, image: Path, targets: Sequence[str], output: Path, device: str
) -> Path:
    """Writes a counterfactual's panel and its figures; returns the panel's path.

    Raises:
        UserError: if the image cannot be read, or a class is unknown, named twice or already
            predicted, or if several classes that exclude each other are asked for.
    """
    model = _load(run, device)
    chosen = class_indices(targets, model.classes, model.multi_label)
    try:
        pixels = _read(model, image)[None]  # (1, C, H, W)
    except ImageError as error:
        raise UserError(f"image {image}: {error}") from None
    before = model.classify(pixels)
    if not model.multi_label and int(before.argmax()) == chosen[0]:
        raise UserError(
            f"the model already sees {targets[0]} in {image.name}; choose another class"
        )
    wish = target_for(chosen, before, model.multi_label)
    made = make_counterfactuals(model, pixels, wish, model.settings.evaluation.counterfactual)
    named = model.classes[int(before.argmax())]
    changes = zip(targets, wish.present[0].tolist(), strict=True)
    asked = (
        ", ".join(f"{'add' if is_added else 'remove'} {target}" for target, is_added in changes)
        if model.multi_label
        else f"{named} → {targets[0]}"
    )
    row = CounterfactualRow(
        source=made.sources[0].numpy(),
        counterfactual=made.images[0].numpy(),
        target=asked,
        classes=model.classes,
        before=made.before[0].numpy(),
        after=made.after[0].numpy(),
        flipped=made.outcome(0),
    )
    output.mkdir(parents=True, exist_ok=True)
    panel = output / f"{image.stem}_{'-'.join(targets)}.png"
    save_counterfactual_panel([row], panel)
    figures = {
        "image": image.name,
        "asked": asked,
        "before": dict(zip(model.classes, made.before[0].tolist(), strict=True)),
        "after": dict(zip(model.classes, made.after[0].tolist(), strict=True)),
        "flipped": bool(made.flipped[0]),
        "l1": float((made.images - made.sources).abs().mean()),
    }
    panel.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
    return panel


def _load(run: Path, device: str) -> TrainedModel:
    if not run.is_dir():
        raise UserError(f"run folder {run} does not exist")
    return TrainedModel.load(run / "model", resolve_device(device))


def _read(model: TrainedModel, path: Path) -> Tensor:
    """One image as (C, H, W) in [0, 1], cropped and resized as for training."""
    data = model.settings.data
    # Twice the size, as the readers of the data sets ask for: it decides which pixels a JPEG gives.
    pixels = fit(decode(path, 2 * data.image_size), data.image_size, data.channels)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
