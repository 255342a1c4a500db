"""The commands of README and pages run as they are shown, with a tiny untrained model.

A block with the mark `<!-- not run: REASON -->` is left out, and so are the commands below, whose
reasons name the tests that run them.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.untrained import untrained_model
from PIL import Image
from typer.testing import CliRunner
from unit.test_documentation import PAGES, ROOT, SUMMARY, blocks, commands

from configs.compose import compose
from mediffusion_core.privacy.accounting.accountant import Charge
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.privacy.ledger.site_ledger import ALL_SITES, open_site_ledger
from mediffusion_core.run_io.run_folder import RunFolder, write_json
from mediffusion_core.settings.site_file import SiteFile
from simulations.cli.main import app

NOT_RUN = {
    "make": "installs packages; .ci/run does",
    "fed-mediffusion simulate": "trains for minutes; tests/integration/test_run.py trains less",
    "fed-mediffusion sweep": "trains for minutes; tests/integration/test_sweep.py trains less",
    "fed-mediffusion study": "takes minutes; tests/integration/test_study.py and "
    "tests/unit/simulations/studies measure less",
    "fed-mediffusion results": "needs studies; tests/unit/simulations/results/test_document.py",
    "fed-mediffusion preflight": "needs a server; tests/unit/deployment/test_preflight.py",
    "fed-mediffusion site ledger verify site.toml --against": "needs a tip that is kept elsewhere; "
    "tests/unit/deployment/test_ledger_commands.py",
}
"""Beginnings of commands that are not run here, and why."""
ELSEWHERE = {
    page: "tests/integration/test_documented_data_commands.py makes the images that it needs"
    for page in ("docs/datasets/", "docs/how-to/own-data.md")
}
"""Pages whose commands are not run here, and why."""
CLASSES = ("Effusion", "Nodule", "MEL")
"""Targets that the pages name."""


def documented(page: Path) -> Iterator[list[str]]:
    """The commands of a page that are run, word by word."""
    if str(page.relative_to(ROOT)).startswith(tuple(ELSEWHERE)):
        return
    for block in blocks(page, "sh", "console", "bash"):
        if not block["why"]:
            for words in commands(block):
                if not " ".join(words).startswith(tuple(NOT_RUN)):
                    yield words


RUN = [page for page in PAGES if next(documented(page), None)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> Path:
    """A folder with all that the pages name: a run, images, a site with a ledger."""
    folder = tmp_path_factory.mktemp("user")
    run = RunFolder(folder / "runs" / "latest")
    untrained_model(compose("config", tiny), CLASSES).save(run.model)
    write_json(run.path / "summary.json", SUMMARY)
    xray = folder / "data" / "xray"
    for path in ("chest.png", "mole.jpg", "images/a.png", "data/xray/a.png"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / path)
    for number, mask in enumerate(("lung.png", "heart.png", "lesion.png", "ruler.png")):
        drawn = np.zeros((40, 40), np.uint8)
        drawn[10 * number : 10 * number + 10] = 255
        Image.fromarray(drawn).save(folder / mask)
    (xray / "labels.csv").write_text("file,Effusion,Nodule,patient_id\na.png,1,0,Anna\n")
    for shown, page in (("site.toml", "how-to/own-site.md"), ("federation.yaml", "deployment.md")):
        block, *_ = blocks(ROOT / "docs" / page, Path(shown).suffix[1:])
        (folder / shown).write_text(at(folder, block["code"]).replace("cuda:0", "cpu"))
    charge = Charge(1.0, 30.0, 4)
    site = open_site_ledger(SiteFile.read(folder / "site.toml"))
    for ledger in (site, Ledger.open(folder / "data" / "ledgers" / ALL_SITES)):
        ledger.charge(["Anna"], charge, "joint", "first", 1)
    return folder


def at(folder: Path, text: str) -> str:
    """Absolute and home folders of a page, below another folder."""
    return re.sub(r"(?<![\w.])(?:~|(?=/(?:data|var/lib)/))", str(folder), text)


@pytest.mark.parametrize("page", RUN, ids=[str(page.relative_to(ROOT)) for page in RUN])
def test_commands_run_as_shown(
    page: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(place, tmp_path / "user"))  # pages write the same files
    monkeypatch.setenv("FED_MEDIFFUSION_STORE", str(place / "store"))
    for program, *arguments in documented(page):
        assert program == "fed-mediffusion", f"{page}: mark the block of {program}"
        result = CliRunner().invoke(app, [at(place, word) for word in arguments])
        assert result.exit_code == 0, f"{page}: {arguments}: {result.output} {result.exception}"


def test_reasons_name_what_is_there() -> None:
    for reason in (*NOT_RUN.values(), *ELSEWHERE.values()):
        for path in re.findall(r"(?:\.ci|tests)/[\w./]+\w", reason):
            assert (ROOT / path).exists(), reason
