"""`fed-mediffusion study reader-export`: the page for the readers, and the key."""

import hashlib
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.evaluation.counterfactual_panel import choose_panel
from mediffusion_core.run_io.run_folder import write_json
from simulations.baselines.pixel_classifier import PixelClassifier
from simulations.baselines.pooled_resnet import calibrated, train_resnet
from simulations.studies.reader.page import reader_page
from simulations.studies.reader.pairs import draw_items, make_pairs, target_texts
from simulations.studies.reader.score import KEY
from simulations.studies.trained_run import TrainedRun, open_trained_run

PAGE = "page.html"


def export_reader_study(
    run: Path, output: Path, count: int, repeats: int, resnet_steps: int, seed: int, device: str
) -> Path:
    """Writes `page.html` for the readers and `key.json`, which readers must not get.

    Args:
        run: Folder of a finished run.
        output: Folder to write, which must not exist.
        count: Number of test images; each gives a pair.
        repeats: Pairs shown again with sides swapped.
        resnet_steps: Training steps of the classifier of external guidance.
        seed: Seed of images, order and sides.
        device: As `resolve_device` takes it.

    Returns:
        The page.

    Raises:
        UserError: if the folder exists, there is no run, its images are not found, or one half of
            its network was not trained.
    """
    if output.exists():
        raise UserError(f"{output} exists; remove it, or name a folder that does not exist")
    console = Console(stderr=True, soft_wrap=True)
    trained = open_trained_run(run, device, console)
    trained.require_counterfactuals()
    model, test = trained.model, trained.dataset.test()
    draw = derive_seed(trained.settings.seed, "readers", seed)
    panel = choose_panel(test.targets, model.classes, model.multi_label, count, draw)
    num_pairs = len(panel.positions)
    if not num_pairs:
        raise UserError("the test set has no image with a possible target")
    external = _external_classifier(trained, resnet_steps, console)
    console.print(f"making {num_pairs} pairs")
    pairs = make_pairs(model, external, test.take(panel.positions), panel.target)
    items = draw_items(num_pairs, repeats, draw)
    shown = b"".join(made.numpy().tobytes() for made in pairs.made.values())
    study = hashlib.sha256(shown + repr(items).encode()).hexdigest()[:16]
    output.mkdir(parents=True)
    page = output / PAGE
    page.write_text(reader_page(study, items, pairs, target_texts(panel)), encoding="utf-8")
    key = {"study": study, "seed": draw, "pairs": num_pairs}
    write_json(output / KEY, {**key, "items": [asdict(item) for item in items]})
    return page


def _external_classifier(run: TrainedRun, steps: int, console: Console) -> PixelClassifier:
    images = run.training_images()
    labelled = images.subset(images.labelled)
    console.print(f"training a ResNet-18 on {len(labelled)} labelled images")
    return calibrated(train_resnet(run.model, labelled, steps), run.validation_images())
