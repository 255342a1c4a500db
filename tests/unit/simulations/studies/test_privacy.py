"""The study of privacy: its cells, its table, its sentences and its page."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from scipy import stats

from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.run_folder import write_json
from simulations.engine.cells import FIGURES, RUN
from simulations.studies.privacy.answers import alarms, audited, suspicions, utility, was_run
from simulations.studies.privacy.page import RESULTS_PAGE, write_page
from simulations.studies.privacy.plan import DEFAULT_BASE, Key, Work, make_plan, time_plan
from simulations.studies.privacy.study import study_privacy
from simulations.studies.privacy.summary import over_seeds, points_of
from simulations.studies.privacy.table import CSV, PARQUET, TPR, rows_of
from simulations.studies.run_cells import NOT_MEASURED
from simulations.studies.sentences import NOT_SHOWN

CANARIES = 100
PRIVATE = ("experiment=phantom_private", "data.phantom.patients_per_site=[40,40]")


def work_on(study: Path, epsilons: str = "2,8,inf", seeds: int = 3) -> Work:
    return Work(make_plan(PRIVATE, epsilons, seeds, CANARIES), study)


def keep_run(work: Work, key: Key, auc: float, **figures: Any) -> None:
    """Leaves a run as its cell would."""
    folder = work.runs[key].folder(work.study)
    (folder / RUN).mkdir(parents=True)
    write_json(folder / RUN / "summary.json", {"status": "complete"})
    write_json(folder / RUN / "settings.json", {})
    (folder / RUN / "metrics.jsonl").write_text("")
    known = {"auc_macro": auc, "auc_macro_interval": [auc - 0.02, auc + 0.02], "seconds": 60.0}
    known |= {"calibration": {"ece": 0.1 - auc / 10}, "fid": 900.0, "commit": "1" * 40}
    write_json(folder / FIGURES, known | figures)


def attack_of(tpr: float, low: float = 0.0) -> dict[str, Any]:
    ends = {"auc": 0.52, "auc_interval": [0.5, 0.54], "tpr": tpr, "tpr_interval": [low, 2 * tpr]}
    return {**ends, "members": 50, "strangers": 20, "precision_at_half": 0.6}


def keep_measures(work: Work, key: Key, tpr: float = 0.02, bound: float = 0.5) -> None:
    """Leaves the attacks and the audit of a run as their cells would."""
    endless = math.isinf(key[0])
    attacks = {"classification loss": attack_of(tpr / 2), "shadow models": attack_of(tpr, tpr / 2)}
    numbers = {"σ": 1.5, "q": 0.4, "μ": None if endless else 0.9}
    allowed = 1.0 if endless else key[0] / 40
    promised = 1e12 if endless else key[0] * 0.99
    stage = {"epsilon": promised, "lower_bound": bound, "largest_bound": 1.98}
    figures: dict[str, dict[str, Any]] = {
        "attack": {"attacks": attacks, "largest_tpr": allowed, "promise": numbers},
        "audit": {"site": "site-0", "stages": {"joint": {**stage, "canaries": CANARIES}}},
    }
    for name, found in figures.items():
        cell = work.measure(key, name)
        cell.folder(work.study).mkdir(parents=True, exist_ok=True)
        write_json(cell.folder(work.study) / FIGURES, {**found, "commit": "2" * 40, "seconds": 9.0})


def keep_all(work: Work) -> None:
    for epsilon, seed in work.runs:
        keep_run(work, (epsilon, seed), 0.7 - 0.1 / epsilon + seed / 1000)
        endless = math.isinf(epsilon)
        keep_measures(work, (epsilon, seed), 0.1 if endless else 0.02, 1.98 if endless else 0.5)


def test_the_default_plan_changes_the_noise_and_the_seed_alone(tmp_path: Path) -> None:
    work = Work(make_plan([], "1,2,4,8,infinity", 3, 1000), tmp_path)
    assert work.plan.base == (DEFAULT_BASE,) and len(work.runs) == 15 and len(work.measures) == 30
    cells = [*work.runs.values(), *work.measures]
    assert len({cell.settings_hash for cell in cells}) == 45
    first = work.runs[1.0, 0].settings
    for (epsilon, seed), run in work.runs.items():
        settings = run.settings
        noise = {"target_epsilon": epsilon, "noise_multiplier": None}
        if math.isinf(epsilon):
            noise = {"target_epsilon": None, "noise_multiplier": 1e-6}
        assert settings.privacy == first.privacy.model_copy(update=noise)
        changed = settings.model_copy(update={"privacy": first.privacy, "seed": 0})
        assert changed == first and settings.seed == seed


def test_only_an_audit_depends_on_its_canaries(tmp_path: Path) -> None:
    few, many = (Work(make_plan(PRIVATE, "2", 1, count), tmp_path) for count in (50, 60))
    key = (2.0, 0)
    assert few.measure(key, "attack").settings_hash == many.measure(key, "attack").settings_hash
    assert few.measure(key, "audit").settings_hash != many.measure(key, "audit").settings_hash


@pytest.mark.parametrize(
    ("overrides", "epsilons", "message"),
    [
        ((), "1,two", "--epsilons: 'two' is not a number above 0, nor infinity"),
        ((), "0", "'0' is not a number above 0"),
        (("experiment=paper_base",), "1", "add privacy=dp"),
        (("privacy.ledger=/tmp/ledger",), "1", "remove privacy.ledger"),
        ((), "0.01", "statistics alone exceed it"),
    ],
)
def test_a_plan_that_cannot_run_is_refused(
    overrides: tuple[str, ...], epsilons: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(overrides, epsilons, 1, CANARIES)


def test_the_time_plan_counts_what_is_missing(tmp_path: Path) -> None:
    work = Work(make_plan([], "8", 2, CANARIES), tmp_path)
    text = time_plan(work, 2)[1]
    assert text.startswith("2 of 2 runs, 2 of 2 attacks, 2 of 2 audits to do, 2 at once: about ")
    work = work_on(tmp_path, "8", 2)
    assert time_plan(work, 2)[1].endswith("the first finished cells will tell how long they take")
    for key in work.runs:
        keep_run(work, key, 0.6)
    keep_measures(work, (8.0, 0))
    # The second run's attack and audit take 9 seconds each, as the first's did.
    assert time_plan(work, 1)[1] == (
        "0 of 2 runs, 1 of 2 attacks, 1 of 2 audits to do, 1 at once: about 0 minutes with a core "
        "for each"
    )


def test_the_table_has_every_figure_of_every_attack_as_csv_and_as_parquet(tmp_path: Path) -> None:
    work = work_on(tmp_path, seeds=1)
    keep_all(work)
    write_page(work)
    with (tmp_path / CSV).open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["epsilon"] for row in rows if row["figure"] == "macro AUC"] == ["2", "8", "inf"]
    [found] = [
        row
        for row in rows
        if (row["epsilon"], row["figure"], row["of"]) == ("8", "attack TPR", "shadow models")
    ]
    assert (found["value"], found["low"], found["high"], found["units"]) == (
        *("0.02", "0.01", "0.04"),
        "50",
    )
    # Fields that this study does not name stand in the table by their own names.
    assert {row["of"] for row in rows if row["figure"] == "precision at half"} == {
        "classification loss",
        "shadow models",
    }
    parquet = pq.read_table(tmp_path / PARQUET).to_pylist()
    assert [(row["figure"], row["of"], row["seed"]) for row in parquet] == [
        (row["figure"], row["of"], int(row["seed"])) for row in rows
    ]
    for one, other in zip(parquet, rows, strict=True):
        assert other["low"] == ("" if one["low"] is None else f"{one['low']:.6g}")


def test_intervals_over_seeds_are_students() -> None:
    values = [0.61, 0.64, 0.62]
    exact = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    found = over_seeds([*values, math.nan])
    assert (found.low, found.high) == pytest.approx(exact) and found.count == 3
    assert math.isnan(over_seeds([0.5]).low) and over_seeds([math.nan]).count == 0


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    work = work_on(tmp_path, "2,inf", 2)
    for seed, auc in ((0, 0.6), (1, 0.8)):
        keep_run(work, (2.0, seed), auc - 0.05)
        keep_run(work, (math.inf, seed), auc)
    first, last = points_of(rows_of(work))
    # The seeds differ by 0.2, the pairs by nothing.
    assert first.auc_difference.low == pytest.approx(-0.05)
    assert first.auc_difference.high == pytest.approx(-0.05)
    assert last.auc_difference.count == 0
    assert utility([first, last])[1].startswith("At ε = 2 it is 0.050 lower than without noise")


def test_a_difference_that_may_be_none_is_called_so(tmp_path: Path) -> None:
    work = work_on(tmp_path, "2,8", 2)
    for key, auc in zip(work.runs, (0.5, 0.6, 0.6, 0.5), strict=True):
        keep_run(work, key, auc)
    sentences = utility(points_of(rows_of(work)))
    assert sentences[0].startswith("At ε = 8 the macro AUC is 0.550 (")
    assert NOT_SHOWN in sentences[1] and "than at ε = 8" in sentences[1]


def test_the_page_says_what_was_run_and_what_it_found(tmp_path: Path) -> None:
    work = work_on(tmp_path)
    assert "0 of 9 runs have finished: ε of 2, 8 and ∞, 3 seeds each" in was_run(work.plan, 0)
    assert "0 of 9 runs" in write_page(work).read_text()  # before any cell has finished
    keep_all(work)
    page = write_page(work).read_text().replace("\N{NO-BREAK SPACE}", " ")
    for part in (
        "9 of 9 runs have finished",
        "Without noise the macro AUC is 0.701 (0.699 to 0.703).",
        "At ε = 2 it is 0.050 lower than without noise (difference \N{MINUS SIGN}0.050 to ",
        "On private runs no attack finds more than 2.0% of the members at 1% false positives "
        "(shadow models at ε = ",
        "Without noise the best attack finds 10.0% (shadow models, seed 0).",
        "below the promised ε in 6 of 6 private runs; the nearest is 0.50 where 1.98 is promised.",
        "Without noise the audit proves an ε of at least 1.98; its canaries can prove 1.98 at most",
        "one patient more or less",
        "Poisson",
        "<dd>1e-05</dd>",
        "111111111, 222222222",
        "0.50 of 7.92",
        "1.98 of ∞",
    ):
        assert part in page, part
    assert 'role="alert"' not in page and "nan" not in page
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert set(before) == {RESULTS_PAGE, CSV, PARQUET, "tradeoff.png"}
    write_page(Work(work.plan, tmp_path))
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}


def test_an_audit_above_its_promise_is_an_alarm(tmp_path: Path) -> None:
    work = work_on(tmp_path, "2,8", 1)
    for key in work.runs:
        keep_run(work, key, 0.6)
    keep_measures(work, (8.0, 0), bound=1.0)
    assert alarms(work) == []
    keep_measures(work, (2.0, 0), bound=1.985)
    [line] = alarms(work)
    assert line.startswith(
        "ε = 2, seed 0: the joint stage has an ε of at least 1.99, and its promi"
    )
    page = write_page(work).read_text()
    assert "The audit contradicts the promise" in page and 'role="alert"' in page
    [sentence] = audited(work, points_of(rows_of(work)))
    assert sentence.startswith("The audit's lower bound is ABOVE the promised ε in 1 of 2 private")


def test_the_command_fails_if_an_audit_contradicts_the_promise(tmp_path: Path) -> None:
    base = (*PRIVATE, f"data.store='{tmp_path / 'store'}'")
    plan = make_plan(base, "2", 2, CANARIES)
    work = Work(plan, tmp_path / "study")
    for key, bound in zip(work.runs, (0.4, 1.985), strict=True):
        keep_run(work, key, 0.6)
        keep_measures(work, key, bound=bound)
    with pytest.raises(
        UserError, match=r"^an audit contr.*\(1 in all, .*html\): ε = 2, seed 1: the"
    ):
        study_privacy(plan, work.study, jobs=1)
    keep_measures(work, (2.0, 1), bound=0.4)
    assert study_privacy(plan, work.study, jobs=1) == work.study / RESULTS_PAGE


def test_an_attack_above_its_promise_is_shown(tmp_path: Path) -> None:
    work = work_on(tmp_path, "2", 1)
    keep_run(work, (2.0, 0), 0.6)
    keep_measures(work, (2.0, 0), tpr=0.2)  # at least 10 %, where 5 % are allowed
    rows = rows_of(work)
    assert max(row.value for row in rows if row.figure == TPR) == 0.2
    [line] = suspicions(rows, points_of(rows))
    assert line.endswith("shadow models finds 20.0% (10.0% to 40.0%) of the members, and the "
                         "promise allows 5.0%")  # fmt: skip
    assert "An attack finds more than the promise allows" in write_page(work).read_text()


def test_runs_without_a_denoiser_or_an_audit_have_a_page(tmp_path: Path) -> None:
    work = work_on(tmp_path, "2", 1)
    keep_run(work, (2.0, 0), 0.6, fid=None)
    cell = work.measure((2.0, 0), "audit")
    cell.folder(tmp_path).mkdir(parents=True)
    reason = "an audit needs privacy.grad_sample_mode=hooks"
    write_json(cell.folder(tmp_path) / FIGURES, {NOT_MEASURED: reason, "seconds": 1.0})
    page = write_page(work).read_text()
    assert f"Not measured: audit: {reason}." in page and "do not train the denoiser" in page
    assert json.loads((cell.folder(tmp_path) / FIGURES).read_text())
