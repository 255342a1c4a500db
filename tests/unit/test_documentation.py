"""README, changelog and pages: their commands parse, their links lead somewhere, their terms hold.

A block of commands is checked line by line, as far as it is ours, or carries the mark
`<!-- not run: REASON -->` above it. `fed-mediffusion`, `flwr run` and `make` are checked in marked
blocks too. `tests/integration/test_documented_commands.py` runs the commands that take seconds; the
tests of the launcher and of the containers run others.
"""

import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from helpers.banned_words import BANNED
from helpers.untrained import untrained_model
from PIL import Image

from configs.compose import change, compose, split
from deployment.federation_file import FederationFile
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.regions import packed_masks
from mediffusion_core.run_io.export import export_run
from mediffusion_core.run_io.run_folder import RunFolder, write_json
from mediffusion_core.settings.site_file import SiteFile
from simulations.cli.main import app
from simulations.studies.guidance.options import Grid, parse_reference
from simulations.studies.labels.plan import make_plan
from simulations.studies.privacy import plan as privacy
from simulations.studies.study_images import class_names
from simulations.sweeps.candidate import candidate_of
from simulations.sweeps.search import corners
from simulations.sweeps.space import parse_space

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
GENERATED = ("reference/settings.md", "reference/commands.md", "reference/error-codes.md")
"""Pages that `docs/pages.py` makes of the code."""

SUMMARY = {"status": "completed", "auc_macro": 0.5, "auc_macro_interval": [0.4, 0.6], "seed": 0}
FENCE = re.compile(
    r"(?ms)^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$"
)
LINK = re.compile(r"!?\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"(?m)^#+ (.+)$")
TARGET = re.compile(r"(?m)^([a-z-]+):")
SECTION = re.compile(r"(?s)<!-- ([a-z]+): begin -->.*?<!-- \1: end -->")


def blocks(page: Path, *kinds: str) -> list[re.Match[str]]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [block for block in found if block["kind"] in kinds]


def commands(block: re.Match[str]) -> Iterator[list[str]]:
    """The words of each command; of `a && b` both."""
    for line in block["code"].replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield words
                words = []


def prose(page: Path) -> str:
    """The text without code, generated sections, and what stands in a link's address."""
    text = SECTION.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)


# Commands


def check_command(words: list[str]) -> bool:
    """Whether a command is one that can be checked; raises where it is wrong."""
    program, *arguments = words
    if program == "fed-mediffusion":
        check_own(arguments)
    elif program == "make":
        check_make(arguments)
    elif words[:2] == ["flwr", "run"]:
        for config in (arguments[i + 1] for i, word in enumerate(arguments) if word == "-c"):
            check_run_config(config)
        return False
    else:
        return False
    return True


def check_own(arguments: list[str]) -> None:
    """Parses a command of ours as the command line does, and composes its settings."""
    command: Any = typer.main.get_command(app)
    name = []
    while hasattr(command, "commands"):
        name.append(arguments.pop(0))
        command = command.commands[name[-1]]
    given = command.make_context(" ".join(name), arguments).params
    overrides = given.get("overrides") or []
    if name == ["study", "guidance"]:
        Grid.parse(given["scales"], given["starts"], given["steps"])
        parse_reference(given["reference"])
        class_names(given["between"])
    elif name == ["study", "labels"]:
        chosen = ("methods", "fractions", "seeds", "minutes", "tune")
        make_plan(overrides, *(given[one] for one in chosen))
    elif name == ["study", "privacy"]:
        chosen = ("epsilons", "seeds", "canaries")
        privacy.make_plan(overrides, *(given[one] for one in chosen))
    if name in (["study", "guidance"], ["study", "explanations"]):
        change(compose("config", []), [f"evaluation.counterfactual.{one}" for one in overrides])
    elif name == ["sweep"]:
        space = parse_space(overrides)
        if given["trials"] is not None:
            corners(space)
        else:
            for chosen in space.grid():
                candidate_of(space, chosen)
    elif overrides:
        compose(given.get("config_name", "config"), overrides)


def check_make(arguments: list[str]) -> None:
    target, *variables = arguments
    assert target in TARGET.findall((ROOT / "Makefile").read_text()), f"make {target}"
    given = dict(variable.split("=", 1) for variable in variables)
    if target == "simulate":
        compose("config", split(given.get("ARGS", "")))


def check_run_config(config: str) -> None:
    """Composes the overrides of a `flwr run`, where they are not left out as `...`."""
    overrides = tomllib.loads(config.replace('" ', '"\n'))["overrides"] if "=" in config else "..."
    if overrides != "...":
        compose("config", split(overrides))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_parse_or_say_why_they_are_not_run(page: Path) -> None:
    for block in blocks(page, "sh", "console", "bash"):
        for words in commands(block):
            checked = check_command(list(words))
            assert checked or block["why"], f"{page}: not checked and not marked: {' '.join(words)}"


def test_a_wrong_command_is_found() -> None:
    for words in (
        ["fed-mediffusion", "simulate", "data.imagesize=64"],
        ["fed-mediffusion", "study", "guidance", "runs/latest", "scales=3"],
        ["flwr", "run", ".", "-c", 'overrides="data=none"'],
        ["make", "simulate", "ARGS=modell=tiny"],
    ):
        with pytest.raises(UserError):
            check_command(words)
    with pytest.raises(Exception, match="No such option"):
        check_command(["fed-mediffusion", "sample", "runs/latest", "--number", "3"])
    with pytest.raises(AssertionError):
        check_command(["make", "coffee"])
    assert not check_command(["rm", "-r", "runs"])


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_shown_are_files_that_the_programs_accept(page: Path) -> None:
    for block in blocks(page, "toml"):
        SiteFile.model_validate(tomllib.loads(block["code"]))
    for block in blocks(page, "yaml"):
        FederationFile.model_validate(yaml.safe_load(block["code"]))


# Python


def python_block(page: str, containing: str) -> str:
    found = [block["code"] for block in blocks(ROOT / page, "python")]
    return next(code for code in found if containing in code)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block["code"], str(page), "exec")


def test_a_trained_model_is_used_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = untrained_model(compose("config", tiny), ("Effusion", "Nodule"))
    model.save(RunFolder(tmp_path / "run").model)
    write_json(tmp_path / "run" / "summary.json", SUMMARY)
    export_run(tmp_path / "run", tmp_path / "exported")
    used: dict[str, Any] = {}
    exec(python_block("README.md", "classify"), used)
    assert len(used["images"]) == 4 and used["changed"].images.shape[1] == 1
    exec(python_block("docs/tutorial.md", "DPMSolver"), used)
    assert len(used["images"]) == 2


def test_centres_are_written_as_the_reader_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("HAM10000_metadata").write_text("image_id,dataset\nISIC_1,rosendahl\n")
    lesions = "image,lesion_id\nISIC_1,HAM_1\nISIC_2,BCN_2\nISIC_3,MSK4_3\nISIC_4,\n"
    Path("ISIC_2019_Training_Metadata.csv").write_text(lesions)
    exec(python_block("docs/datasets/isic2019.md", "centers.csv"), {})
    lines = Path("centers.csv").read_text().split()
    assert lines[0] == "image,center_name"
    assert [line.split(",")[1] for line in lines[1:]] == ["rosendahl", "BCN", "MSK", "unattributed"]


def test_masks_are_packed_as_the_reader_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mask = np.zeros((450, 600), np.uint8)
    mask[90:210, 300:420] = 255
    Path("masks").mkdir()
    Image.fromarray(mask).save("masks/ISIC_1_segmentation.png")
    exec(python_block("docs/datasets/isic2019.md", "packbits"), {})
    regions = packed_masks(tmp_path / "lesion_masks.npz", ["ISIC_1", "ISIC_2"])
    found = regions(0, None)
    assert found is not None and found.shape == (150, 200) and regions(1, None) is None
    assert found[30:70, 100:140].all() and found.sum() == 40 * 40


# Links


def slug(heading: str) -> str:
    text = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip())


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for found in LINK.finditer(text):
        target, _, anchor = found["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = Path(os.path.normpath(page.parent / target)) if target else page
        if path.is_relative_to(DOCS) and str(path.relative_to(DOCS)) in GENERATED:
            continue
        assert path.exists(), f"{page}: {found[0]}"
        if anchor:
            slugs = map(slug, HEADING.findall(path.read_text(encoding="utf-8")))
            assert anchor in slugs, f"{page}: {found[0]}"


# Language and length


@pytest.mark.parametrize(("name", "lines"), [("README.md", 200), ("CHANGELOG.md", 130)])
def test_no_longer_than_is_read(name: str, lines: int) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= lines


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_former_words_are_gone(page: Path) -> None:
    text = prose(page)
    if page == DOCS / "glossary.md":
        text = re.sub(r"(?m)^\|.*$", "", text)
    for word in BANNED:
        found = re.search(rf"(?i)\b{word}\b", text)
        assert not found, f"{page}: {found and found[0]!r}; docs/glossary.md has the term"
