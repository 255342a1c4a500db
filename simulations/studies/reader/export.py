"""`fed-mediffusion study reader-export`: the page for the readers, and the key that stays here."""

import hashlib
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.evaluation.counterfactual_panel import choose_panel
from mediffusion_core.run_io.run_folder import write_json
from simulations.baselines.pooled_resnet import calibrated, train_resnet
from simulations.studies.pooled_images import training_images, validation_images
from simulations.studies.reader.page import reader_page
from simulations.studies.reader.pairs import asked_for, draw_items, make_pairs
from simulations.studies.reader.score import KEY
from simulations.studies.trained_run import open_trained_run

PAGE = "page.html"


def export_reader_study(
    run: Path, output: Path, count: int, repeats: int, resnet_steps: int, seed: int, device: str
) -> Path:
    """Writes `page.html`, which goes to the readers, and `key.json`, which does not.

    Args:
        run: Folder of a finished run.
        output: Folder to write, which must not exist.
        count: Test images, each with a pair.
        repeats: Pairs that are shown again, with sides swapped.
        resnet_steps: Of training the classifier that guides the other counterfactuals.
        seed: Of images, order and sides.
        device: As `resolve_device` takes it.

    Returns:
        The page.

    Raises:
        UserError: the folder exists, there is no run, its images cannot be found, or one half of
            its network is not trained.
    """
    if output.exists():
        raise UserError(f"{output} exists; remove it, or name a folder that does not exist")
    console = Console(stderr=True, soft_wrap=True)
    opened = open_trained_run(run, device, console)
    model = opened.model
    if not opened.settings.training.joint.trains_both_halves:
        raise UserError(f"the run {run} trained one half of its network, which explains nothing")
    test = opened.hospitals.test()
    draw = derive_seed(opened.settings.seed, "readers", seed)
    panel = choose_panel(test.targets, model.classes, model.multi_label, count, draw)
    if not len(panel.positions):
        raise UserError("the test set holds no image that something could be asked of")
    images = training_images(opened.hospitals)
    labelled = images.subset(images.labelled)
    console.print(f"training a ResNet-18 on {len(labelled)} labelled images")
    external = train_resnet(opened, labelled, resnet_steps)
    external = calibrated(external, validation_images(opened.hospitals))
    console.print(f"making {len(panel.positions)} pairs")
    pairs = make_pairs(model, external, test.take(panel.positions), panel.target)
    items = draw_items(len(panel.positions), repeats, draw)
    shown = b"".join(made.numpy().tobytes() for made in pairs.made.values())
    study = hashlib.sha256(shown + repr(items).encode()).hexdigest()[:16]
    output.mkdir(parents=True)
    page = output / PAGE
    page.write_text(reader_page(study, items, pairs, asked_for(panel)), encoding="utf-8")
    key = {"study": study, "seed": draw, "pairs": len(panel.positions)}
    write_json(output / KEY, {**key, "items": [asdict(item) for item in items]})
    return page
