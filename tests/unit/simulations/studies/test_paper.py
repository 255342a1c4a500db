"""The study of the paper's questions: its cells, its answers and its page."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file

from configs.compose import changes_of, compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.evaluation.bootstrap import Estimate
from mediffusion_core.run_io.run_folder import write_json
from simulations.cli.study import study
from simulations.engine.cells import FIGURES, RUN, Cell
from simulations.studies.labels.cells import PREDICTIONS
from simulations.studies.paper.found import Found
from simulations.studies.paper.page import TABLE, write_page
from simulations.studies.paper.plan import Plan, Work, make_plan, time_plan, variant_cell
from simulations.studies.paper.questions import QUESTIONS
from simulations.studies.paper.variants import JOINT, variants_of
from simulations.studies.run_cells import NOT_MEASURED
from simulations.studies.sentences import NOT_SHOWN, compared, compared_apart, listed

SITES = ("site-0", "site-1", "site-2")
MOST_CELLS = 24
PATIENTS = 60
RIGHT = torch.eye(2).repeat(PATIENTS // 2, 1)


def work_on(base: tuple[str, ...], study: Path, *questions: str) -> tuple[Plan, Work]:
    """A plan and its cells, without opening the images."""
    plan = make_plan(list(base), ",".join(questions) if questions else None)
    variants = variants_of(compose("config", plan.base), SITES[-1])
    chosen = [QUESTIONS[name] for name in plan.questions]
    names = dict.fromkeys((JOINT, *(run for one in chosen for run in one.runs)))
    runs = {name: variant_cell(variants[name], plan.base) for name in names}
    found = Found(study, runs, np.array(SITES * (PATIENTS // 3)), SITES[-1])
    wanted = dict.fromkeys(one for question in chosen for one in question.measures)
    measures = [found.measure_cell(*one) for one in wanted]
    return plan, Work(chosen, list(runs.values()), measures, found)


def keep(cell: Cell, study: Path, logits: torch.Tensor, **summary: Any) -> None:
    """Leaves a run as its cell would."""
    run = cell.folder(study) / RUN
    run.mkdir(parents=True)
    figures = {"auc_macro": 0.5, "seconds": 90.0, "multi_label": False}
    saved = {"logits": logits.clone(), "targets": RIGHT, "groups": torch.arange(PATIENTS)}
    save_file(saved, cell.folder(study) / PREDICTIONS)
    parameters = {"autoencoder": 5, "unet": 10, "head": 2}
    write_json(
        run / "summary.json", {"parameters": parameters, "psnr": 30.0, "fid": 500.0} | summary
    )
    write_json(cell.folder(study) / FIGURES, figures)


def half_right() -> torch.Tensor:
    """Logits that rank half of the patients at random."""
    noise = torch.randn(PATIENTS, 2, generator=torch.Generator().manual_seed(0))
    return torch.where(torch.arange(PATIENTS)[:, None] % 4 < 2, RIGHT * 4, noise)


@pytest.mark.parametrize(
    "base", [(), ("experiment=isic2019_4centres", "data.root=PATH_TO_ISIC_2019")]
)
def test_all_questions_take_at_most_24_cells_that_compose(
    base: tuple[str, ...], tmp_path: Path
) -> None:
    _, work = work_on(base, tmp_path)
    hashes = [cell.settings_hash for cell in (*work.runs, *work.measures)]
    assert len(set(hashes)) == len(hashes) <= MOST_CELLS
    assert len({cell.settings.seed for cell in work.runs}) == 1
    used = {run for question in work.questions for run in question.runs}
    assert used == set(variants_of(compose("config", make_plan(base, None).base), SITES[-1]))


def test_the_runs_change_what_the_experiment_files_change(tmp_path: Path) -> None:
    _, work = work_on((), tmp_path)
    for run, experiment in (
        (JOINT, "paper_base"),
        ("diffusion", "paper_diffusion"),
        ("classifier", "paper_classifier"),
        ("joint-all", "paper_all_labels"),
        ("lambda-paper", "paper_lambda"),
        ("latents-half", "paper_latents"),
        ("left-out", "paper_left_out"),
    ):
        named = compose("config", [f"experiment={experiment}"])
        assert work.found.runs[run].settings == named, run
    assert changes_of("paper_left_out") == ("federation.left_out_site=site-2",)


def test_questions_about_the_same_runs_share_their_cells(tmp_path: Path) -> None:
    _, one = work_on((), tmp_path, "diffusion")
    _, both = work_on((), tmp_path, "diffusion", "separate")
    _, apart = work_on((), tmp_path, "separate")
    hashes = [{cell.settings_hash for cell in work.runs} for work in (one, apart, both)]
    assert hashes[0] | hashes[1] == hashes[2]
    assert len(both.measures) == len(one.measures) == 2


def test_the_command_lists_the_questions() -> None:
    command: Any = typer.main.get_command(study)
    [option] = [one for one in command.commands["paper"].params if one.name == "questions"]
    listed = option.help.partition(": ")[2].partition(";")[0]
    assert listed.split(", ") == list(QUESTIONS)


def test_a_question_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="no question 'size'; allowed: autoencoder, diffusion, all"):
        make_plan([], "lambda,size")


def test_the_time_plan_counts_what_is_missing(tiny: tuple[str, ...], tmp_path: Path) -> None:
    plan, work = work_on((), tmp_path, "all-labels", "autoencoder")
    _, text = time_plan(plan, work, 2)
    assert text.startswith("2 of 2 runs and 1 of 1 measurements to do, 2 at once: about ")
    plan, work = work_on(tiny, tmp_path, "all-labels")
    assert time_plan(plan, work, 2)[1].endswith(
        "the first finished run will tell how long one takes"
    )
    keep(work.found.runs[JOINT], tmp_path, RIGHT)
    assert "1 of 2 runs and 0 of 0 measurements" in time_plan(plan, work, 2)[1]


def test_the_page_answers_by_paired_intervals_and_is_the_same_each_time(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    plan, work = work_on(tiny, tmp_path, "all-labels", "scanners")
    keep(work.found.runs[JOINT], tmp_path, half_right(), commit="1" * 40)
    page = write_page(plan, work)
    assert "Not answered yet: 1 of 2 cells have finished." in page.read_text()
    keep(work.found.runs["joint-all"], tmp_path, RIGHT, psnr=12.0, commit="2" * 40)
    keep(work.found.runs["left-out"], tmp_path, half_right(), commit="1" * 40)
    written = write_page(plan, work).read_text()
    assert "Joint, all labels less joint, 40% of labels: AUC +0." in written
    assert "Commits of the runs and measurements: 111111111, 222222222." in written
    assert "higher." in written and NOT_SHOWN in written
    assert "At site-2 the AUC is" in written
    assert "| joint, all labels | Reconstructions have a PSNR of 12.0 dB" in written
    with (tmp_path / TABLE).open() as lines:
        rows = list(csv.DictReader(lines))
    differences = [row for row in rows if row["figure"] == "AUC difference"]
    assert [row["against"] for row in differences] == ["joint, 40% of labels"]
    assert float(differences[0]["low"]) > 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert set(before) == {"results.md", "results.json", "results.csv", "answers.png"}
    again = replace(work, found=replace(work.found, _aucs={}))
    write_page(plan, again)
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}


def estimate(value: float, half: float = 0.01, count: int = 9) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "count": count}


def test_every_question_has_an_answer_once_its_cells_are_there(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    plan, work = work_on(tiny, tmp_path)
    for cell in work.runs:
        keep(cell, tmp_path, half_right())
    own = {"flipped": 0.5, "independent_flipped": 0.4, "l1": 0.02, "off_target": 0.1}
    scale = {name: estimate(value) for name, value in own.items()}
    unknown = {"value": None, "low": None, "high": None, "count": 0}  # no masks
    scale["energy_inside"] = unknown
    maps = {name: estimate(0.3) for name in ("deletion", "insertion", "pointing", "inside", "iou")}
    methods = ("Grad-CAM", "integrated gradients", "SHAP")
    names = ("psnr", "ssim", "auc_images", "auc_reconstructions", "auc_lost")
    given: dict[str, dict[str, Any]] = {
        "reconstruction": {name: estimate(0.02) for name in names},
        "samples": {"fid": estimate(500, 9), "diversity": estimate(0.8), "fid_floor": 100.0},
        "guidance": {"own_scale": 1.0, "scales": {"0.5": scale}, "less_own": {"0.5": scale}},
        "explanations": {
            "rows": [{"method": "ours", "figures": maps}],
            "ours_less": {name: {**maps, "inside": unknown} for name in methods},
        },
    }
    for cell in work.measures:
        cell.folder(tmp_path).mkdir()
        write_json(cell.folder(tmp_path) / FIGURES, given[cell.measure])
    page = write_page(plan, work).read_text()
    assert "Not answered" not in page and "nan" not in page
    for part in (
        "AUC on images less that on them is +0.020 (+0.010 to +0.030), higher",
        "FID of samples of diffusion alone and joint, 40% of labels: 500 (491 to 509) against",
        "scale 0.5 against the run's own 1: flips by the model +50% (+49% to +51%), higher",
        "counterfactuals less SHAP: deletion +0.300 (+0.290 to +0.310), higher, which is worse",
    ):
        assert part.lower() in page.lower(), part
    [guided] = [cell for cell in work.measures if cell.measure == "guidance"]
    write_json(guided.folder(tmp_path) / FIGURES, {NOT_MEASURED: "only 2 images"})
    assert "Not answered: only 2 images." in write_page(plan, work).read_text()
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert {one["question"] for one in figures} == set(plan.questions) - {"guidance"}
    guided.forget_reason(tmp_path)  # it is tried again
    assert guided.figures(tmp_path) is None
    others = [cell for cell in work.measures if cell != guided]
    for cell in others:
        cell.forget_reason(tmp_path)
    assert all(cell.figures(tmp_path) is not None for cell in others)


def test_a_difference_is_shown_only_if_its_interval_excludes_0() -> None:
    assert compared("it is", Estimate(0.1, 0.05, 0.2, 9)).endswith("(+0.050 to +0.200), higher")
    assert compared("it is", Estimate(-0.1, -0.2, -0.05, 9)).endswith(", lower")
    assert compared("it is", Estimate(0.1, -0.05, 0.2, 9)).endswith(NOT_SHOWN)
    low, high = Estimate(1.0, 0.9, 1.1, 9), Estimate(1.3, 1.2, 1.4, 9)
    assert compared_apart("FID", low, high, ".1f").endswith(": lower")
    assert compared_apart("FID", low, replace(high, low=1.0), ".1f").endswith(NOT_SHOWN)


def test_a_sentence_begins_with_a_capital_but_no_capital_symbol() -> None:
    assert listed(["one", "two"]) == "One; two."
    assert listed(["λ 0.1 less joint"]) == "λ 0.1 less joint."
