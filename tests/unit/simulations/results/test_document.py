"""The tables of results are written from runs and studies, and only from completed ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mediffusion_core.common.errors import UserError
from mediffusion_core.reporting.marked_sections import read_section
from simulations.cli.main import app
from simulations.results.document import PAGES, SUMMARY, Sources, summary_table, write_results

ROOT = Path(__file__).parents[4]
SECTIONS = ("runs", "unlabelled", "labels", "counterfactuals", "explanations", "samples")

FIGURES: dict[str, Any] = {
    "status": "completed",
    "auc_macro": 0.8712,
    "auc_macro_interval": [0.86, 0.88],
    "fid": 512.4,
    "fid_untrained": 1300.2,
    "fid_floor": 150.0,
    "psnr": 27.31,
    "counterfactual": {"flip_rate": 0.9, "eligible": 40},
    "seconds": 600.0,
    "seed": 3,
    "commit": "0123456789abcdef",
    "settings_hash": "fedcba9876543210",
}


def run(folder: Path, overrides: list[str], **changes: Any) -> Path:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(FIGURES | changes))
    launched = {"config_name": "config", "overrides": [*overrides, f"run.folder='{folder}'"]}
    (folder / "launch.json").write_text(json.dumps(launched))
    return folder


def marked(name: str, text: str) -> str:
    return f"# Title\n\n<!-- {name}: begin -->\n{text}\n<!-- {name}: end -->\n\nbehind\n"


def project(folder: Path) -> Path:
    """A folder with a README and a page for each section, each with old tables."""
    (folder / PAGES).mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(marked(SUMMARY, "old"))
    for name in SECTIONS:
        (folder / PAGES / f"{name}.md").write_text(marked(name, "old"))
    return folder


def written(sources: Sources, folder: Path, name: str) -> str:
    """The page of a section once tables have been written."""
    page = folder / PAGES / f"{name}.md"
    assert page in write_results(sources, folder)
    return page.read_text()


def everything(folder: Path) -> dict[str, str]:
    return {str(page): page.read_text() for page in sorted(folder.rglob("*.md"))}


def test_the_section_alone_is_replaced_and_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    root = f"data.root='{tmp_path}'"
    given = run(tmp_path / "run", ["data=isic2019", "data.root=here", root])
    before = everything(project(tmp_path))
    text = written(Sources([given]), tmp_path, "runs")
    assert text.startswith("# Title\n\n<!-- runs: begin -->\n| command |")
    assert text.endswith("|\n<!-- runs: end -->\n\nbehind\n")
    assert "`fed-mediffusion simulate data=isic2019 data.root=PATH`" in text
    assert "0.871 (0.860 to 0.880)" in text and "512; 1300; 150" in text and "27.3 dB" in text
    assert "seed 3, commit 012345678, settings fedcba98" in text
    assert "old" not in text and str(tmp_path) not in text
    changed = {name for name, page in everything(tmp_path).items() if page != before[name]}
    assert changed == {str(tmp_path / "README.md"), str(tmp_path / PAGES / "runs.md")}
    assert written(Sources([given]), tmp_path, "runs") == text


def test_the_readme_has_some_columns_of_every_run(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, [f"seed={seed}"]) for seed, name in enumerate(("one", "other"))]
    write_results(Sources(runs[:1]), project(tmp_path))
    write_results(Sources(runs[1:]), tmp_path)
    lines = read_section(tmp_path / "README.md", SUMMARY).splitlines()
    assert lines[0] == "| command | macro AUC (95 %) | FID; untrained; real | flipped | minutes |"
    cells = "| 0.871 (0.860 to 0.880) | 512; 1300; 150 | 90% of 40 | 10.0 |"
    assert lines[2:] == [f"| `fed-mediffusion simulate seed={seed}` {cells}" for seed in (0, 1)]


def test_the_readme_leaves_out_a_run_that_chance_explains(tmp_path: Path) -> None:
    chance = run(tmp_path / "run", [], auc_macro=0.55, auc_macro_interval=[0.49, 0.66])
    write_results(Sources([chance]), project(tmp_path))
    assert "0.550 (0.490 to 0.660)" in read_section(tmp_path / PAGES / "runs.md", "runs")
    assert len(read_section(tmp_path / "README.md", SUMMARY).splitlines()) == 2


def test_the_command_prints_the_documents_it_wrote(tmp_path: Path) -> None:
    given = run(tmp_path / "run", [])
    command = ["results", str(given), "--project", str(project(tmp_path))]
    printed = CliRunner().invoke(app, command).output.split()
    assert printed == [str(tmp_path / PAGES / "runs.md"), str(tmp_path / "README.md")]


def test_the_projects_own_readme_is_that_of_its_page() -> None:
    runs = read_section(ROOT / PAGES / "runs.md", "runs")
    assert read_section(ROOT / "README.md", SUMMARY) == summary_table(runs)


def test_a_run_replaces_the_row_of_its_command_and_leaves_the_others(tmp_path: Path) -> None:
    names = ("first", "second", "again")
    overrides, aucs = (["seed=1"], ["seed=2"], ["seed=1"]), (0.81, 0.82, 0.83)
    first, second, again = (
        run(tmp_path / name, given, auc_macro=auc)
        for name, given, auc in zip(names, overrides, aucs, strict=True)
    )
    write_results(Sources([first, second]), project(tmp_path))
    text = written(Sources([again]), tmp_path, "runs")
    assert text.count("| command |") == 1
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("|")[2].split()[0] for row in rows] == ["0.830", "0.820"]
    before = everything(tmp_path)
    with pytest.raises(UserError, match="two of these runs have the same command"):
        write_results(Sources([first, again]), tmp_path)
    assert everything(tmp_path) == before


def test_runs_and_a_study_are_written_at_once(tmp_path: Path) -> None:
    given = run(tmp_path / "run", [], counterfactual=None)
    rows = [
        {"seed": seed, "auc_macro": value, "commit": "c" * 40, "settings_hash": "5" * 16}
        for seed, value in ((0, 0.86), (0, 0.81), (1, 0.88), (1, 0.80))
    ]
    study = tmp_path / "study"
    study.mkdir()
    results = {"overrides": [], "mean_auc_macro": {"with": 0.87, "without": 0.805}, "runs": rows}
    (study / "results.json").write_text(json.dumps(results))
    text = written(Sources([given], study), project(tmp_path), "unlabelled")
    assert "| 0 | 0.860 | 0.810 | +0.050 |" in text
    assert "| mean | 0.870 | 0.805 | +0.065 |" in text
    assert "| command |" in (tmp_path / PAGES / "runs.md").read_text()
    assert "old" in (tmp_path / PAGES / "labels.md").read_text()


def test_a_study_of_labels_lists_methods_runs_and_trials(tmp_path: Path) -> None:
    row = {"method": "resnet", "title": "federated ResNet-18", "fraction": 0.2, "fid": None}
    row |= {"seeds": [0, 1], "auc_macro": 0.82, "auc_deviation": 0.01, "ece": 0.05, "seconds": 300}
    row |= {"difference": -0.04, "difference_interval": [-0.06, -0.02]}
    missing = row | {"title": "central joint", "seeds": [], "auc_macro": None}
    ran = {"method": "resnet", "fraction": 0.2, "seed": 1, "site": None, "seconds": 240.0}
    ran |= {"auc_macro": 0.83, "auc_macro_interval": [0.81, 0.85]}
    ran |= {"commit": "c" * 40, "settings_hash": "5" * 16}
    trial = {"method": "resnet", "trial": ["learning_rate=5e-4"], "site": None}
    trial |= {"auc_pooled": None, "chosen": False}
    results = {"overrides": ["data.root=here"], "options": ["--seeds 2"], "rows": [row, missing]}
    results |= {"runs": [ran, ran | {"seconds": None}], "trials": [trial]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = written(Sources(labels=[tmp_path]), project(tmp_path), "labels")
    shown = "| federated ResNet-18 | 20% | 0.820 ± 0.010 | 2 | -0.040 (-0.060 to -0.020) | - | "
    assert shown + "0.050 | 5.0 |" in text
    assert "| central joint | 20% | not run |" in text
    made = "seed 1, commit ccccccccc, settings 55555555"
    assert text.count(f"| resnet | 20% | 0.830 (0.810 to 0.850) | 4.0 | {made} |") == 1
    assert "| resnet | `learning_rate=5e-4` | not run |  |" in text
    assert "`fed-mediffusion study labels data.root=PATH --seeds 2`" in text
    # Other commands' tables stay, those of the same command are replaced.
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_text(json.dumps(results | {"options": ["--seeds 3"]}))
    text = written(Sources(labels=[other]), tmp_path, "labels")
    assert text.count(shown) == 2 and text.index("--seeds 2") < text.index("--seeds 3")
    newer = results | {"rows": [row | {"auc_macro": 0.85}]}
    (tmp_path / "results.json").write_text(json.dumps(newer))
    text = written(Sources(labels=[tmp_path]), tmp_path, "labels")
    assert text.count(shown) == 1 and text.count("0.850 ± 0.010") == 1
    assert text.index("--seeds 2") < text.index("--seeds 3")
    with pytest.raises(UserError, match="two of these studies have the same command"):
        write_results(Sources(labels=[other, other]), tmp_path)
    assert (tmp_path / PAGES / "labels.md").read_text() == text


def test_missing_figures_are_shown_as_not_measured(tmp_path: Path) -> None:
    unmeasured = dict.fromkeys(("auc_macro", "auc_macro_interval", "fid", "fid_floor", "psnr"))
    flipped = {"flip_rate": None, "eligible": 0}
    given = run(tmp_path / "run", [], **unmeasured, counterfactual=flipped)
    text = written(Sources([given]), project(tmp_path), "runs")
    assert "| not measured (not measured) |" in text
    assert "| not measured; 1300; not measured | not measured | not measured |" in text
    bounds = run(tmp_path / "bounds", [], auc_macro_interval=[None, None], counterfactual=None)
    text = written(Sources([bounds]), project(tmp_path), "runs")
    assert "| 0.871 (not measured) |" in text and "nan" not in text


def test_a_study_without_every_figure_has_no_mean(tmp_path: Path) -> None:
    rows = [
        {"seed": 0, "auc_macro": value, "commit": None, "settings_hash": "5" * 16}
        for value in (0.86, None)
    ]
    results = {"overrides": [], "mean_auc_macro": {"with": 0.86, "without": None}, "runs": rows}
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = written(Sources([], tmp_path), project(tmp_path), "unlabelled")
    assert "| 0 | 0.860 | not measured | not measured |" in text
    assert "| mean | 0.860 | not measured | not measured |" in text


def test_the_command_is_the_one_that_another_user_would_type(tmp_path: Path) -> None:
    weights = f"evaluation.inception_weights='{tmp_path / 'weights.pth'}'"
    given = run(tmp_path / "run", ["evaluation.extractor=inception", weights])
    launched = json.loads((given / "launch.json").read_text())
    (given / "launch.json").write_text(json.dumps(launched | {"config_name": "other"}))
    text = written(Sources([given]), project(tmp_path), "runs")
    command = "fed-mediffusion simulate --config-name other evaluation.extractor=inception"
    assert f"`{command}`" in text


def test_changed_code_is_told_from_its_commit(tmp_path: Path) -> None:
    given = run(tmp_path / "run", [], commit="0123456789abcdef-dirty")
    text = written(Sources([given]), project(tmp_path), "runs")
    assert "commit 012345678-dirty, settings" in text


@pytest.mark.parametrize(
    ("page", "text", "changes", "message"),
    [
        ("docs/results/runs.md", "no marks", {}, "needs the marks"),
        ("README.md", "no marks", {}, "needs the marks"),
        ("docs/results/runs.md", "<!-- runs: end --> <!-- runs: begin -->", {}, "in this order"),
        ("README.md", marked(SUMMARY, ""), {"status": "failed"}, "no completed run"),
    ],
)
def test_a_mistake_changes_nothing(
    tmp_path: Path, page: str, text: str, changes: dict[str, Any], message: str
) -> None:
    given = run(tmp_path / "run", [], **changes)
    (project(tmp_path) / page).write_text(text)
    before = everything(tmp_path)
    with pytest.raises(UserError, match=message):
        write_results(Sources([given]), tmp_path)
    assert everything(tmp_path) == before


def test_folders_without_a_run_or_a_document_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs\.md cannot be read"):
        write_results(Sources([run(tmp_path / "run", [])]), tmp_path)
    with pytest.raises(UserError, match="holds no finished run"):
        write_results(Sources([tmp_path]), project(tmp_path))
    with pytest.raises(UserError, match="holds no finished study"):
        write_results(Sources([], tmp_path), tmp_path)


def test_a_study_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"rows": [], "data": "phantom"}))
    with pytest.raises(UserError, match="another study"):
        write_results(Sources(explanations=[tmp_path]), project(tmp_path))
    with pytest.raises(UserError, match="another study"):
        write_results(Sources(counterfactuals=[tmp_path]), tmp_path)


def test_nothing_named_writes_nothing(tmp_path: Path) -> None:
    before = everything(project(tmp_path))
    with pytest.raises(UserError, match="no run and no study"):
        write_results(Sources(), tmp_path)
    assert everything(tmp_path) == before


ABOUT = {"data": "phantom", "seed": 1, "commit": "a" * 40, "settings_hash": "5" * 16}
MADE = "seed 1, commit aaaaaaaaa, settings 55555555"


def estimate(value: float | None) -> dict[str, Any]:
    return {"value": value, "low": value and value - 0.1, "high": value and value + 0.1, "count": 9}


def test_studies_of_a_run_have_sections_of_their_own(tmp_path: Path) -> None:
    figures = {"flipped": estimate(0.9), "l1": estimate(0.02), "energy_inside": estimate(None)}
    row = {"method": "ours", "figures": figures, "fid": 512.2, "seconds_per_image": 0.42}
    guidance = ABOUT | {"images": {"test": 30}, "independent": {"auc_macro": 0.98}}
    guidance |= {"fid_floor": 500.0, "rows": [row | {"method": "source"}, row]}
    (tmp_path / "results.json").write_text(json.dumps(guidance))
    sources = Sources(counterfactuals=[tmp_path, tmp_path])
    text = written(sources, project(tmp_path), "counterfactuals")
    assert "old" not in text and "old" in (tmp_path / PAGES / "samples.md").read_text()
    assert "|  | phantom, 30 images | phantom, 30 images |" in text
    assert "| flipped by the model | 90% (80% to 100%) | 90% (80% to 100%) |" in text
    assert "widened by 2 px | - | - |" in text and f"| made by | {MADE} | {MADE} |" in text
    assert "Methods on" not in text

    guidance["rows"] = [
        *guidance["rows"],
        row | {"method": "Mediffusion, scale 5", "seconds_per_image": 7},
    ]
    (tmp_path / "results.json").write_text(json.dumps(guidance))
    text = written(Sources(counterfactuals=[tmp_path]), tmp_path, "counterfactuals")
    assert f"Methods on 30 images of phantom ({MADE}):" in text
    assert "| Mediffusion, scale 5 | 90% (80% to 100%) | - | - | 0.0200 (" in text
    assert "| 512 | 7.00 |" in text


def test_explanations_and_samples_are_tables_of_their_rows(tmp_path: Path) -> None:
    row = {"method": "ours", "figures": {"pointing": estimate(0.5)}, "seconds_per_image": 0.5}
    found = ABOUT | {"images": 40, "ours_less": {}, "rows": [row]}
    (tmp_path / "results.json").write_text(json.dumps(found))
    text = written(Sources(explanations=[tmp_path]), project(tmp_path), "explanations")
    assert f"40 images of phantom ({MADE}):" in text
    assert "| ours | - | - | 50% (40% to 60%) | - | - | 0.50 |" in text

    distances = {name: estimate(0.5) for name in ("fid", "kid", "precision", "recall", "coverage")}
    found = ABOUT | {"count": 40, "sets": [{"name": "20 steps", **distances}]}
    (tmp_path / "results.json").write_text(json.dumps(found))
    text = written(Sources(samples=[tmp_path]), tmp_path, "samples")
    assert "40 images of phantom a set" in text
    assert "| 20 steps | 0 (0 to 1) | 0.50 (0.40 to 0.60) | 0.50 (" in text


@pytest.mark.parametrize("name", SECTIONS)
def test_each_section_has_a_page_in_the_project(name: str) -> None:
    assert read_section(ROOT / PAGES / f"{name}.md", name).count("\n| ") > 2
