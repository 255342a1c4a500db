"""The report: everything measured is there, nothing else is claimed, nothing is fetched."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mediffusion_core.common.errors import UserError
from mediffusion_core.reporting.first_screen_page import SCRIPT
from mediffusion_core.reporting.formats import (
    NOT_MEASURED,
    count,
    duration,
    interval,
    number,
    percent,
)
from mediffusion_core.reporting.report import write_report

HOSTILE = "<script>alert('x')</script>\"&"


class Page(HTMLParser):
    """Tags with their attributes, and the visible text, of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.script = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and not self.script:
            self.script = data
        else:
            self.text += data

    def values(self, tag: str, attribute: str) -> list[str]:
        return [str(found[attribute]) for name, found in self.tags if name == tag]


def summary(**other: Any) -> dict[str, Any]:
    site = {"images": 1200, "train": 900, "labelled": 180, "validation": 120, "test": 180}
    return {
        "status": "complete",
        "experiment": "trial",
        "auc_macro": 0.8614,
        "auc_macro_interval": [0.8421, 0.8793],
        "auc_per_class": {"Mass": {"auc": 0.912, "interval": [0.9, 0.93], "positives": 41}},
        "auc_per_site": {"north": 0.77, "south": None},
        "calibration": {
            "temperature": 1.734,
            "ece": 0.0213,
            "ece_uncalibrated": 0.0842,
            "brier": 0.1034,
            "brier_uncalibrated": 0.1187,
        },
        "fid": 84.61,
        "fid_floor": 52.04,
        "counterfactual": {"flip_rate": 0.875, "l1": 0.0312, "count": 9, "eligible": 8},
        "seconds": 3725.0,
        "commit": "0123456789abcdef",
        "seed": 0,
        "census": {"north": {**site, "patients": 800, "per_class": {"Mass": 41}}},
        "parameters": {"unet": 6812345},
        **other,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name in ("zebra", "curves", "samples_round_5", "a b#c%20"):
        Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    (tmp_path / "settings.json").write_text(json.dumps({"seed": 0, "data": {"source": "phantom"}}))
    lines = [
        {"stage": "joint", "round": 3, "rounds": 4, "time": 61.0, "diffusion_loss": 1.0},
        {"stage": "evaluation", "round": 0, "rounds": 4, "time": 5.0, "fid": 331.2},
        {"stage": "evaluation", "round": 4, "rounds": 4, "time": 99.0, "auc_macro": 0.8614},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_figures_stand_with_their_intervals(folder: Path) -> None:
    page = Page(write_report(folder))
    for text in (
        "0.861", "0.842 to 0.879", "0.912", "0.900 to 0.930", "84.6", "floor 52.0", "88 %",
        "1 h 02 min", "012345678", "1,200", "6,812,345", "phantom", "331.2", "north",
        "0.021", "uncalibrated 0.084, temperature 1.73", "0.103", "uncalibrated 0.119",
    ):  # fmt: skip
        assert text in page.text, text


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"privacy": {"enabled": False}}, "no differential privacy"),
        (
            {"privacy": {"enabled": True, "unit": "patient", "target_delta": 1e-5}},
            "ε 3.46 for one patient at δ 1e-05, for the planned rounds of this run",
        ),
        (
            {"federation": {"client_level": {"noise_multiplier": 2.0, "target_delta": 0.01}}},
            "ε 9.10 for a whole site at δ 0.01",
        ),
    ],
)
def test_the_privacy_guarantee_is_reported(
    folder: Path, settings: dict[str, Any], shown: str
) -> None:
    sites = {"north": {"epsilon": 1.2}, "south": {"epsilon": 3.4567}}
    figures = summary(privacy={"sites": sites}, client_level={"epsilon": 9.1})
    (folder / "summary.json").write_text(json.dumps(figures))
    (folder / "settings.json").write_text(json.dumps(settings))
    text = Page(write_report(folder)).text
    assert shown in text and text.count("ε ") == shown.count("ε ")
    figures["privacy"]["sites"]["south"]["epsilon"] = None  # maybe the one that costs most
    (folder / "summary.json").write_text(json.dumps(figures))
    assert "ε 1.20" not in Page(write_report(folder)).text


def test_a_missing_figure_reads_not_measured_and_never_zero(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path))
    body = page.text[page.text.index("Federated joint diffusion") :]
    assert body.count(NOT_MEASURED) >= 8
    assert not any(character.isdigit() for character in body.replace("range 0 to 1", "").replace(
        tmp_path.name, ""))  # fmt: skip


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf"), "0.5", True, {}])
def test_nothing_else_counts_as_a_figure(nothing: Any) -> None:
    for form in (number, percent, count, duration):
        assert form(nothing) == NOT_MEASURED
    assert interval([0.1, nothing]) == "" == interval(nothing)


def test_a_null_in_the_summary_is_not_measured(folder: Path) -> None:
    given = summary(auc_macro=None, auc_per_class={"Mass": {"auc": None, "positives": 0}})
    (folder / "summary.json").write_text(json.dumps(given))
    page = Page(write_report(folder))
    assert "0.861" not in page.text.split("Every evaluation")[0]
    # The interval of a figure that is missing would claim what the card denies.
    assert "0.842" not in page.text


def test_hostile_text_stays_text(folder: Path) -> None:
    site = {"images": 1, "train": 1, "labelled": 0, "validation": 0, "test": 0, "patients": 1}
    given = summary(
        experiment=HOSTILE,
        status=HOSTILE,
        commit=HOSTILE,
        auc_per_class={HOSTILE: {"auc": 0.5, "interval": [0.4, 0.6], "positives": 1}},
        census={HOSTILE: {**site, "per_class": {HOSTILE: 1}}},
        set_aside=[{"stage": "joint", "round": 3, "site": HOSTILE, "kind": "k", "reason": HOSTILE}],
        parameters={HOSTILE: 1},
    )
    (folder / "summary.json").write_text(json.dumps(given))
    (folder / "settings.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    page = Page(write_report(folder))
    assert [tag for tag, _ in page.tags].count("script") == 1 and page.script == SCRIPT
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    assert page.text.count("<script>alert") >= 8
    assert "joint 3" in page.text


def test_every_picture_exists_and_known_ones_come_first(folder: Path) -> None:
    sources = Page(write_report(folder)).values("img", "src")
    assert sources[:2] == ["pictures/samples_round_5.png", "pictures/curves.png"]
    assert len(sources) == 4
    assert all((folder / unquote(source)).is_file() for source in sources)


def test_nothing_is_fetched_from_elsewhere(folder: Path) -> None:
    page = Page(write_report(folder))
    assert "http" not in page.source.replace("http-equiv", "")
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert not any("src" in found for tag, found in page.tags if tag == "script")
    assert "@import" not in page.source and "url(" not in page.source
    targets = page.values("img", "src") + page.values("a", "href")
    assert all(target.startswith("pictures/") for target in targets)


def test_the_scale_of_a_class_is_in_percent_of_its_width(folder: Path) -> None:
    styles = [found.get("style") for tag, found in Page(write_report(folder)).tags if tag == "span"]
    assert "left:91.2%" in styles and "left:90.0%;width:3.0%" in styles


def test_tags_are_closed(folder: Path) -> None:
    source = Page(write_report(folder)).source
    for tag in ("table", "tr", "div", "figure", "details", "span", "section", "main", "dl"):
        assert source.count(f"<{tag}>") + source.count(f"<{tag} ") == source.count(f"</{tag}>"), tag


def test_half_a_last_line_is_forgiven_and_a_broken_one_named(folder: Path) -> None:
    metrics = folder / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '\n{"stage": "jo')
    assert "331.2" in Page(write_report(folder)).text
    metrics.write_text('{"stage": "jo\n' + whole)
    with pytest.raises(UserError, match=r"metrics\.jsonl line 1 is not valid JSON"):
        write_report(folder)


def test_mistakes_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        write_report(folder / "nowhere")
    (folder / "summary.json").write_text("[]")
    with pytest.raises(UserError, match="expected a JSON object"):
        write_report(folder)
    (folder / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json is not valid JSON"):
        write_report(folder)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.9, "1 h 00 min"),
        (7260, "2 h 01 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(-1e6, 1e6))
def test_a_number_reads_back(value: float) -> None:
    assert float(number(value).replace("\N{MINUS SIGN}", "-")) == pytest.approx(value, abs=5.1e-4)
