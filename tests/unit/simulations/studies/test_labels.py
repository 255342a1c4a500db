"""The study of labels: its plan, its cells and their comparison."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from mediffusion_core.common.errors import UserError
from mediffusion_core.reporting.style import new_figure
from simulations.baselines.settings import FineTunedSettings, LinearSettings
from simulations.engine.cells import FIGURES
from simulations.studies.labels.cells import PREDICTIONS, LabelsCell, baseline_of, cells_of
from simulations.studies.labels.comparison import paired_difference, write_comparison
from simulations.studies.labels.curves import LineEnd, label_ends
from simulations.studies.labels.methods import METHODS
from simulations.studies.labels.plan import make_plan
from simulations.studies.labels.study import choose_trials


@pytest.fixture
def base(tiny: tuple[str, ...], tmp_path: Path) -> list[str]:
    return [*tiny, f"data.store='{tmp_path / 'store'}'"]


def keep(cell: LabelsCell, study: Path, logits: torch.Tensor, pooled: float = 0.5) -> None:
    """Leaves a cell's result as a run would."""
    folder = cell.folder(study)
    folder.mkdir(parents=True)
    targets = torch.eye(2).repeat(10, 1)
    groups = torch.arange(20)
    save_file({"logits": logits, "targets": targets, "groups": groups}, folder / PREDICTIONS)
    figures = {
        "auc_macro": 0.5,
        "auc_pooled": pooled,
        "seconds": 60.0,
        "calibration": {"ece": 0.1, "brier": 0.2},
        "multi_label": False,
    }
    (folder / FIGURES).write_text(json.dumps(figures))


def test_every_classifier_has_equally_many_trials_and_starts_from_its_defaults() -> None:
    """But for logistic regressions, which select one of six penalties in each run."""
    tuned = [one for one in METHODS.values() if not isinstance(one.baseline, LinearSettings)]
    classify = [method for method in tuned if method.name != "diffusion"]
    assert {len(set(method.trials)) for method in classify} == {3}
    assert METHODS["diffusion"].trials == ((),)  # no AUC could choose
    assert all(method.trials[0] == () for method in METHODS.values())


def test_settings_of_every_cell_compose(base: list[str]) -> None:
    for name, method in METHODS.items():
        for trial in method.trials:
            for cell in cells_of(method, trial, base, 0.4, seed=1):
                assert cell.method == name
                assert cell.settings.seed == 1
                assert cell.settings.data.labelled_fraction == 0.4


def test_a_baselines_hash_covers_its_data_and_itself_but_not_the_joint_network(
    base: list[str],
) -> None:
    def hash_of(name: str, *overrides: str, fraction: float = 0.4) -> str:
        (cell,) = cells_of(METHODS[name], (), [*base, *overrides], fraction, seed=1)
        return cell.settings_hash

    same = hash_of("resnet")
    assert hash_of("resnet", "training.joint.learning_rate=0.1") == same
    assert hash_of("joint", "training.joint.learning_rate=0.1") != hash_of("joint")
    others = [
        hash_of("fixmatch"),
        hash_of("resnet-central"),
        hash_of("resnet", "data.image_size=64"),
        hash_of("resnet", fraction=0.2),
    ]
    assert len({same, *others}) == 5


def test_labels_alone_make_as_many_steps_as_all_images_would(base: list[str]) -> None:
    (joint,) = cells_of(METHODS["joint"], (), base, 0.4, seed=1)
    (alone,) = cells_of(METHODS["labels-alone"], (), base, 0.4, seed=1)
    expected = joint.settings.training.joint.local_epochs / 0.4
    assert alone.settings.training.joint.local_epochs == pytest.approx(expected)
    assert not alone.settings.data.use_unlabelled


def test_a_paired_interval_is_narrow_where_methods_err_on_the_same_patients() -> None:
    shared = torch.linspace(-0.1, 0.1, 101)
    low, high = paired_difference([0.8 + shared, 0.7 + shared], [0.75 + shared, 0.65 + shared])
    assert low == pytest.approx(0.05, abs=1e-6)
    assert high == pytest.approx(0.05, abs=1e-6)


def test_a_comparison_pairs_seeds_and_names_cells_without_results(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = make_plan(base, "joint,resnet,fixmatch", "0.4", 2, 10, False)
    chosen = choose_trials(asked, tmp_path)
    cells = list(asked.cells(chosen))
    right = torch.eye(2).repeat(10, 1)
    for cell in cells:
        if cell.method == "joint":
            keep(cell, tmp_path, right)
        if cell.method == "resnet" and cell.seed == 1:
            keep(cell, tmp_path, -right)
    with Console(record=True, width=160) as console:
        path = write_comparison(asked, cells, chosen, tmp_path, console)
    rows = {row["method"]: row for row in json.loads(path.read_text())["rows"]}
    assert rows["joint"]["auc_macro"] == 1.0
    assert rows["joint"]["seeds"] == [0, 1]
    assert rows["resnet"]["auc_macro"] == 0.0
    assert rows["resnet"]["seeds"] == [1]
    assert rows["resnet"]["difference"] == -1.0
    assert rows["fixmatch"]["auc_macro"] is None
    assert "not run" in console.export_text()
    assert (tmp_path / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize(("samples", "fid"), [(16, None), (100, 250.0)])
def test_the_first_method_is_the_reference_of_a_plan_without_the_joint_network(
    base: list[str], tmp_path: Path, samples: int, fid: float | None
) -> None:
    """And an FID of few samples, drawn so to save time, is not shown."""
    asked = make_plan(
        [*base, f"evaluation.num_samples={samples}"], "classifier,resnet", "0.4", 1, 10, False
    )
    chosen = choose_trials(asked, tmp_path)
    cells = list(asked.cells(chosen))
    right = torch.eye(2).repeat(10, 1)
    for cell in cells:
        keep(cell, tmp_path, right if cell.method == "classifier" else -right)
        path = cell.folder(tmp_path) / FIGURES
        path.write_text(json.dumps({**json.loads(path.read_text()), "fid": 250.0}))
    with Console(record=True, width=160) as console:
        results = json.loads(write_comparison(asked, cells, chosen, tmp_path, console).read_text())
    rows = {row["method"]: row for row in results["rows"]}
    assert results["reference"] == "classifier"
    assert "difference" not in rows["classifier"] and rows["resnet"]["difference"] == -1.0
    assert rows["classifier"]["fid"] == fid
    assert "against classifier" in console.export_text()


def test_names_of_methods_that_are_equal_do_not_cover_each_other() -> None:
    axes = new_figure(6.4, 4.0).subplots()
    axes.set_ylim(0.7, 0.9)
    ends = [LineEnd(0.2, 0.8 + 0.0001 * number, f"method {number}", "black") for number in range(5)]
    label_ends(axes, [*ends, LineEnd(1.0, 0.8, "joint", "black")])
    written = {text.get_text(): text.xy for text in axes.texts}
    heights = [written[f"method {number}"][1] for number in range(5)]
    gaps = [above - below for below, above in pairwise(heights)]
    assert min(gaps) > 0.2 * 0.044  # of the axis's height
    assert written["joint"] == (1.0, pytest.approx(0.8))


def test_validation_patients_choose_among_trials_once_all_have_run(
    base: list[str], tmp_path: Path
) -> None:
    asked = make_plan(base, "resnet", None, 1, 10, True)
    trials = list(asked.trials())
    logits = torch.zeros(20, 2)
    for pooled, (_, _, cell) in zip((0.6, 0.7), trials, strict=False):
        keep(cell, tmp_path, logits, pooled)
    assert choose_trials(asked, tmp_path)["resnet"] == METHODS["resnet"].trials[0]
    keep(trials[2][2], tmp_path, logits, 0.65)
    assert choose_trials(asked, tmp_path)["resnet"] == METHODS["resnet"].trials[1]
    untuned = make_plan(base, "resnet,joint", None, 1, 10, False)
    assert choose_trials(untuned, tmp_path)["resnet"] == METHODS["resnet"].trials[0]


@pytest.mark.parametrize(
    ("methods", "fractions", "message"),
    [
        ("joint,resnet50", None, "no method 'resnet50'; allowed: joint, "),
        (None, "0.1,many", "numbers above 0 and up to 1"),
        (None, "0", "numbers above 0 and up to 1"),
    ],
)
def test_a_mistake_in_the_plan_is_named(
    methods: str | None, fractions: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_plan([], methods, fractions, 1, 10, False)


@pytest.mark.parametrize(
    "asked",
    [
        "privacy=dp",
        "federation.client_level.noise_multiplier=1",
        "federation.fraction_train=0.5",
        "federation.compression=int8",
        "federation.local_normalisation=true",
        "federation.server.unet.method=fedyogi",
        "federation.num_malicious_sites=1",
    ],
)
def test_a_baseline_refuses_settings_of_the_federation_that_it_lacks(
    base: list[str], asked: str
) -> None:
    resnet = METHODS["resnet"].scaled(0.1)
    assert list(cells_of(resnet, (), base, 0.4, 0))
    with pytest.raises(UserError, match="baselines of a study are trained without it"):
        list(cells_of(resnet, (), [*base, asked], 0.4, 0))
    assert list(cells_of(METHODS["joint"].scaled(0.1), (), [*base, asked], 0.4, 0))


def test_methods_that_take_several_times_as_long_run_where_they_are_named() -> None:
    by_default = make_plan([], None, None, 1, 10, False)
    assert "fixmatch" in by_default.methods and "fedirm" not in by_default.methods
    assert by_default.options == ["--seeds 1"]
    assert make_plan([], "fedirm", None, 1, 10, False).options[0] == "--methods fedirm"


def test_fine_tuning_has_as_many_steps_at_each_fraction(base: list[str]) -> None:
    epochs = [
        cell.baseline.local_epochs
        for fraction in (0.05, 0.2)
        for cell in cells_of(METHODS["efficientnet"], (), base, fraction, 0)
        if isinstance(cell.baseline, FineTunedSettings)
    ]
    assert epochs[0] == pytest.approx(4 * epochs[1])


@pytest.mark.parametrize("method", ["resnet", "efficientnet", "statistics"])
def test_a_described_baseline_is_run_as_it_is(base: list[str], method: str) -> None:
    [cell] = cells_of(METHODS[method], (), base, 0.2, 0)
    assert baseline_of(cell.description()["rival"]) == cell.baseline


@pytest.mark.parametrize("method", ["statistics", "efficientnet"])
def test_originals_are_refused_where_scanners_differ(base: list[str], method: str) -> None:
    shifted = [*base, "data.scanner_shift=0.5"]
    with pytest.raises(UserError, match=rf"^{method} needs data.scanner_shift=0"):
        list(cells_of(METHODS[method], (), shifted, 0.4, 0))
