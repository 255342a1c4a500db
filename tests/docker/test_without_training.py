"""Evaluation and statistics by three containers over TLS."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from docker_engine import RUNS, SITES, Federation
from helpers.classifying import export_classifying_model

from configs.compose import flatten
from simulations.engine.evaluate import evaluation_overrides

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture
def run(
    federation: Federation, sign: Callable[[str], str], tmp_path: Path
) -> Callable[[list[str]], Path]:
    """Runs overrides and returns the server's files of the run."""

    def ended(overrides: list[str]) -> Path:
        federation.wait_until_all_are_there()
        folder = federation.start(sign(flatten(overrides)))
        assert federation.wait_for_end(folder, 600) == "finished:completed"
        federation.copy_out("server", folder, tmp_path / "run")
        assert not [*(tmp_path / "run").rglob("*.png"), *(tmp_path / "run").rglob("*.npy")]
        return tmp_path / "run"

    return ended


def test_the_pooled_auc_is_that_of_the_pooled_images(
    federation: Federation,
    run: Callable[[list[str]], Path],
    tiny: tuple[str, ...],
    tiny_data: tuple[str, ...],
    tmp_path: Path,
) -> None:
    auc = export_classifying_model(tiny, tmp_path)
    exported = tmp_path / "exported"
    for path in (exported, *exported.rglob("*")):  # the containers' user reads it
        path.chmod(0o755 if path.is_dir() else 0o644)
    federation.wait_until_all_are_there()
    federation.compose("cp", str(exported), f"server:{RUNS}/exported")
    asked = evaluation_overrides(exported, None, (*tiny_data, "evaluation.patients=all"))
    folder = run([*asked, f"evaluation.model={RUNS}/exported"])
    figures = json.loads((folder / "summary.json").read_text())["model"]
    print(f"pooled AUC {figures['auc']:.5f} from the sites' counts, {auc:.5f} of the pooled images")
    assert figures["auc"] == pytest.approx(auc, abs=0.002)
    assert sorted(figures["sites"]) == list(SITES)
    assert figures["subgroups"]["age"]["0-17"]["sites"] == 0


def test_statistics_count_the_images_of_all_sites(
    run: Callable[[list[str]], Path], tiny_data: tuple[str, ...]
) -> None:
    folder = run([*tiny_data, "task=statistics"])
    figures = json.loads((folder / "statistics.json").read_text())
    assert sorted(figures["sites"]) == list(SITES) and figures["pooled"]["images"] == 180
    assert figures["sites"]["site-0"]["subgroups"]["age"]["0-17"]["count"] is None
    assert "suppressed" in (folder / "statistics.html").read_text()
