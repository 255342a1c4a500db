"""`fed-mediffusion study shortcut`: which site's scanner mark the classifier uses."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.ground_truth import planted_mark
from mediffusion_core.evaluation.bootstrap import estimate_mean
from mediffusion_core.evaluation.counterfactual_panel import make_counterfactuals
from mediffusion_core.evaluation.localisation import energy_inside, squared_change
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.settings import CounterfactualSettings
from simulations.studies.guidance.methods import Ours, refuse_untrained_noise
from simulations.studies.guidance.options import changed_guidance
from simulations.studies.result_files import write_results
from simulations.studies.shortcut.decision import BOOTSTRAPS, Decision, decide
from simulations.studies.shortcut.measure import Measured, SiteImages, measure, removal
from simulations.studies.shortcut.pictures import rows_to_show, save_panel
from simulations.studies.shortcut.tables import sentences, shortcut_page
from simulations.studies.trained_run import TrainedRun, open_trained_run

SHOWN = 6


@dataclass(frozen=True)
class _Examined:
    """One model with its guidance, measurements and decisions."""

    model: TrainedModel
    guidance: CounterfactualSettings
    measured: Measured
    tested: list[Decision]


def study_shortcut(
    run: Path,
    mended: Path | None,
    overrides: Sequence[str],
    per_class: int,
    output: Path,
    device: str,
) -> Path:
    """Tests every mark at every site for every class, on the test images of a run.

    Args:
        run: Folder of a finished run.
        mended: Folder of a run that was trained without the shortcut, on the same patients.
        overrides: Changes of our guidance, for example `num_inference_steps=10`.
        per_class: Counterfactuals of each class at each site, at most.
        output: Folder to write.
        device: As `resolve_device` takes it.

    Returns:
        The written page, `results.md`; beside it are `results.json` and a picture.

    Raises:
        UserError: if there is no run, its images are not found, one half of its network was not
            trained, it assigns no class, or the mended run has other classes or test patients.
    """
    console = Console(stderr=True, soft_wrap=True)
    runs = {"before": _open(run, device, console)}
    if mended is not None:
        runs["mended"] = _open(mended, device, console)
        _refuse_other_patients(runs["before"], runs["mended"])
    trained = runs["before"]
    test = trained.dataset.test()
    given = SiteImages(
        test.take(torch.arange(len(test))),
        trained.dataset.site_of_test(),
        trained.dataset.groups(test.rows),
    )
    guidances = {name: changed_guidance(one.settings, overrides) for name, one in runs.items()}
    for name, one in runs.items():
        refuse_untrained_noise(one.model.guided, [Ours(name, guidances[name])])
    examined = {}
    for name, one in runs.items():
        console.print(f"{name}: testing the marks on {len(test)} images")
        examined[name] = _examine(one.model, guidances[name], given, per_class)
    return _write(runs, examined, given, output, console)


def _open(folder: Path, device: str, console: Console) -> TrainedRun:
    trained = open_trained_run(folder, device, console)
    trained.require_counterfactuals()
    return trained


def _refuse_other_patients(before: TrainedRun, mended: TrainedRun) -> None:
    """Checks that both models have the same classes and never trained on the test patients."""
    if before.model.classes != mended.model.classes:
        raise UserError(f"{mended.folder} has other classes than {before.folder}")
    for name in ("image_size", "channels"):
        given = [getattr(run.settings.data, name) for run in (before, mended)]
        if given[0] != given[1]:
            raise UserError(
                f"{mended.folder} has data.{name}={given[1]}, {before.folder} has {given[0]}"
            )
    tests = [
        [run.dataset.store.image_ids[row] for row in run.dataset.test_rows]
        for run in (before, mended)
    ]
    if tests[0] != tests[1]:
        raise UserError(
            f"{mended.folder} has other test patients than {before.folder}; train it with the same "
            "seed and the same split"
        )


def _examine(
    model: TrainedModel, guidance: CounterfactualSettings, given: SiteImages, per_class: int
) -> _Examined:
    measured = measure(model, given, guidance, per_class)
    seed = derive_seed(model.settings.seed, "shortcut", "bootstrap")
    return _Examined(model, guidance, measured, decide(measured.evidence, seed))


def _write(
    runs: Mapping[str, TrainedRun],
    examined: Mapping[str, _Examined],
    given: SiteImages,
    output: Path,
    console: Console,
) -> Path:
    """Writes figures, page and picture."""
    before, mended = examined["before"], examined.get("mended")
    after = None if mended is None else mended.tested
    said = sentences(before.tested, after)
    results = {
        **runs["before"].provenance(),
        "mended": None if mended is None else runs["mended"].provenance(),
        "images": len(given.images),
        "counterfactuals": {
            name: len(one.measured.removals.positions) for name, one in examined.items()
        },
        "tests": len(before.tested),
        "outcome": said,
        "marks": {
            name: [{**asdict(row), "used": row.used} for row in one.tested]
            for name, one in examined.items()
        },
        "pasted": _mean_effects(examined),
        "truth": _ground_truth(runs["before"], examined, given),
    }
    page = write_results(output, results, shortcut_page(results, said, before.tested, after))
    _draw(examined, given, output / "panel.png")
    for one in said:
        console.print(one)
    return page


def _mean_effects(examined: Mapping[str, _Examined]) -> list[dict[str, Any]]:
    """Mean effect of each mark pasted on the images of all sites without it, on each class."""
    return [
        {
            "model": name,
            "kind": kind,
            "mean": dict(
                zip(one.model.classes, effects.pasted.nanmean(dim=0).tolist(), strict=True)
            ),
        }
        for name, one in examined.items()
        for kind, effects in one.measured.effects.items()
    ]


def _ground_truth(
    run: TrainedRun, examined: Mapping[str, _Examined], given: SiteImages
) -> dict[str, Any] | None:
    """The planted mark, and how much of the change of counterfactuals lies in its pixels."""
    where = planted_mark(run.settings, run.dataset)
    if where is None:
        return None
    mark = run.settings.data.phantom.mark
    rows = run.dataset.test().rows
    masks = torch.stack([torch.from_numpy(where(int(row))) for row in rows])
    label = run.model.classes.index(mark.finding)
    energy = {}
    for name, one in examined.items():
        removals = one.measured.removals
        inside = energy_inside(
            squared_change(removals.made.sources, removals.made.images),
            masks[removals.positions],
        ).where(removals.classes == label, torch.nan)
        owners = [given.groups[at] for at in removals.positions.tolist()]
        energy[name] = asdict(estimate_mean(inside, owners, BOOTSTRAPS, run.settings.seed))
    used = {(one.site, one.kind, one.label) for one in examined["before"].tested if one.used}
    site = f"site-{mark.site}"
    planted = (site, mark.kind, mark.finding)
    return {
        "site": site,
        "kind": mark.kind,
        "finding": mark.finding,
        "named": planted in used,
        "named_alone": used == {planted},
        "energy_in_mask": energy,
    }


def _draw(examined: Mapping[str, _Examined], given: SiteImages, path: Path) -> None:
    """Draws counterfactuals without the class of the mark that is used, or nearest to it."""
    before = examined["before"]
    first = min(before.tested, key=lambda one: (one.p_value, -abs(one.pasted.value)))
    removals = before.measured.removals
    positions, classes = removals.positions, removals.classes
    found = before.measured.effects[first.kind].found[positions] & given.at(first.site)[positions]
    wanted = classes == before.model.classes.index(first.label)
    shown = rows_to_show(found, wanted, SHOWN)
    positions, classes = positions[shown], classes[shown]
    made = {}
    for name, one in examined.items():
        images = given.images[positions]
        log_odds = one.model.classify(images).logit(eps=1e-6)
        target = removal(log_odds, classes, one.model.multi_label)
        title = name if len(examined) > 1 else "counterfactual"
        made[title] = make_counterfactuals(one.model, images, target, one.guidance)
    labels = [
        f"{given.sites[at]}, without {before.model.classes[label]}"
        for at, label in zip(positions.tolist(), classes.tolist(), strict=True)
    ]
    save_panel(made, labels, [first.kind] * len(labels), path)
