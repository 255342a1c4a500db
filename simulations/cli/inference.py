"""Commands on the model of a finished run: predict, sample, explain."""

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from mediffusion_core.common.device import resolve_device
from mediffusion_core.common.errors import UserError
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.counterfactuals.target_by_name import class_indices, target_for
from mediffusion_core.data.any_image import is_image, load_listed
from mediffusion_core.data.files import file_name, list_folder, shown
from mediffusion_core.data.image_set import as_batch
from mediffusion_core.data.readers.dicom_file import is_dicom
from mediffusion_core.data.store.decoding import Bad, Decoder, create_array, decode_all
from mediffusion_core.data.store.images import SUFFIXES
from mediffusion_core.evaluation.counterfactual_panel import (
    CounterfactualRow,
    Counterfactuals,
    make_counterfactuals,
)
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.reporting.pictures import (
    save_counterfactual_panel,
    save_sample_grid,
)
from mediffusion_core.run_io.any_model import is_exported, load_exported
from mediffusion_core.run_io.picture_input import editable_of

BATCH = 64


def predict_folder(run: Path, folder: Path, output: Path, device: str) -> Path:
    """Classifies a folder's images into a CSV, one row an image, and says which files it did not.

    Files that are not read are listed with the reason in `<output>_not_read.csv`.

    Raises:
        UserError: if the folder is missing, or holds no image that can be read.
    """
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist")
    model = _load(run, device)
    console = Console(stderr=True, soft_wrap=True)
    files = list_folder(folder, is_image)
    with TemporaryDirectory() as work:
        pixels, bad = _decoded(model, folder.resolve(), files.images, Path(work), console)
        read = [index for index in range(len(files.images)) if index not in bad]
        unread = [(one.path, one.reason) for one in files.left_out]
        unread += [(files.images[index], reason) for index, reason in bad.items()]
        answer = f"{len(read)} of {files.count} files read"
        if unread:
            answer += f"; not read: {_grouped(unread)}"
        if not read:
            raise UserError(
                f"no readable image in {folder} ({', '.join(SUFFIXES)}, DICOM): {answer}"
            )
        parts = [read[start : start + BATCH] for start in range(0, len(read), BATCH)]
        probabilities = torch.cat([model.classify(as_batch(pixels[part])) for part in parts])
    rows = [
        [shown(files.images[index]), *(f"{p:.9g}" for p in row)]
        for index, row in zip(read, probabilities.tolist(), strict=True)
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    _write_rows(output, [["image", *model.classes], *rows])
    listed = output.with_name(f"{output.stem}_not_read.csv")
    listed.unlink(missing_ok=True)
    if unread:
        _write_rows(listed, [["file", "reason"], *([shown(path), why] for path, why in unread)])
        answer += f"; all in {listed}"
    console.print(answer, markup=False, highlight=False)
    return output


def _decoded(
    model: TrainedModel, root: Path, paths: tuple[str, ...], work: Path, console: Console
) -> tuple[NDArray[np.uint8], Bad]:
    """The images (N, S, S, C) as a store would have them, and those that can't be read."""
    data = model.settings.data
    target = work / "images.npy"
    create_array(target, (len(paths), data.image_size, data.image_size, data.channels))
    # A user's own folder may hold links to files elsewhere.
    targets = tuple(str((root / path).resolve()) for path in paths)
    load = partial(load_listed, Path(root.anchor), targets, data.window)
    is_codec_in_c = any(is_dicom(root / path) for path in paths)  # which may end its process
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("reading images", total=len(paths))
        bad = decode_all(
            Decoder(load, target),
            len(paths),
            None,
            lambda done, total: progress.update(task, completed=done, total=total),
            isolated=is_codec_in_c,
        )
    images: NDArray[np.uint8] = np.load(target, mmap_mode="r")
    return images, bad


def _grouped(unread: Sequence[tuple[str, str]]) -> str:
    """How many files of each reason, and the first of each."""
    first: dict[str, str] = {}
    for path, reason in unread:
        first.setdefault(reason, path)
    counts = Counter(reason for _, reason in unread)
    return ", ".join(
        f"{count} {reason} ({shown(first[reason])})" for reason, count in counts.items()
    )


def _write_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def draw_samples(run: Path, output: Path, count: int, steps: int, seed: int, device: str) -> Path:
    """Draws images into a folder, one PNG each, and up to 64 of them into `<folder>_grid.png`."""
    model = _load(run, device)
    images = model.sample(count, steps, seed)
    output.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels).save(
            output / f"seed-{seed}_{number:05d}.png"
        )
    # Beside the folder: `predict` takes every picture in it for an image.
    folder = output.resolve()
    save_sample_grid(images[:64], folder.with_name(f"{folder.name}_grid.png"))
    return output


def explain_image(
    run: Path,
    image: Path,
    targets: Sequence[str],
    output: Path,
    device: str,
    edit: Path | None = None,
    keep: Path | None = None,
) -> Path:
    """Writes a counterfactual's panel and its figures; returns the panel's path.

    Args:
        run: Folder of a run, or of an exported pipeline.
        image: The image to explain.
        targets: Names of the classes to change.
        output: Folder to write.
        device: As `resolve_device` takes it.
        edit: A mask, white where the image may change.
        keep: A mask, white where it must not change.

    Raises:
        UserError: if the image or a mask cannot be used, nothing may change, a class is unknown,
            named twice or already predicted, or if several classes that exclude each other are
            asked for.
    """
    model = _load(run, device)
    chosen = class_indices(targets, model.classes, model.multi_label)
    console = Console(stderr=True, soft_wrap=True)
    pixels = _read(model, image, console)
    # The file was decoded once by now, so it ends no process.
    editable = editable_of(image, edit, keep, model.settings)
    before = model.classify(pixels)
    if not model.multi_label and int(before.argmax()) == chosen[0]:
        raise UserError(
            f"the model already predicts {targets[0]} for {image.name}; choose another class"
        )
    target = target_for(chosen, before, model.multi_label)
    guidance = model.settings.evaluation.counterfactual
    made = make_counterfactuals(model, pixels, target, guidance, editable)
    row = CounterfactualRow(
        source=made.sources[0].numpy(),
        counterfactual=made.images[0].numpy(),
        target=_asked(targets, target, model.classes[int(before.argmax())]),
        classes=model.classes,
        before=made.before[0].numpy(),
        after=made.after[0].numpy(),
        flipped=made.outcome(0),
        editable=None if editable is None else editable[0, 0].numpy(),
    )
    output.mkdir(parents=True, exist_ok=True)
    panel = output / file_name(f"{image.stem}_{'-'.join(targets)}", ".png")
    save_counterfactual_panel([row], panel)
    figures = {"image": shown(image.name), **_figures(row, before[0], made)}
    panel.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
    if made.note:
        console.print(made.note, markup=False, highlight=False)
    return panel


def _asked(targets: Sequence[str], target: Target, predicted: str) -> str:
    """The target as text: `remove Effusion, add Nodule`, or `NV → MEL`."""
    if not target.multi_label:
        return f"{predicted} → {targets[0]}"
    changes = zip(targets, target.present[0].tolist(), strict=True)
    return ", ".join(f"{'add' if is_added else 'remove'} {name}" for name, is_added in changes)


def _figures(
    row: CounterfactualRow, probabilities: Tensor, made: Counterfactuals
) -> dict[str, Any]:
    def by_class(values: Tensor) -> dict[str, float]:
        return dict(zip(row.classes, values.tolist(), strict=True))

    figures = {
        "asked": row.target,
        "probabilities": by_class(probabilities),
        "before": by_class(made.before[0]),
        "after": by_class(made.after[0]),
        "flipped": bool(made.flipped[0]),
        "l1": float((made.images - made.sources).abs().mean()),
    }
    if row.editable is None:
        return figures
    return figures | {"editable": float(row.editable.mean()), "note": made.note}


def _load(run: Path, device: str) -> TrainedModel:
    if not run.is_dir():
        raise UserError(f"run folder {run} does not exist")
    if is_exported(run):
        return load_exported(run, resolve_device(device))
    return TrainedModel.load(run / "model", resolve_device(device))


def _read(model: TrainedModel, path: Path, console: Console) -> Tensor:
    """One image as (1, C, H, W) in [0, 1], cropped and resized as for training."""
    real = Path(os.path.realpath(path))
    with TemporaryDirectory() as work:
        pixels, bad = _decoded(model, real.parent, (real.name,), Path(work), console)
        if bad:
            raise UserError(f"image {shown(path)}: {bad[0]}")
        return as_batch(pixels[[0]])
