"""The report in a real browser: it shows what it should, to everyone, and sends nothing."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from helpers.chromium import NEEDS_BROWSER
from PIL import Image
from playwright.sync_api import Browser, Page

from mediffusion_core.evaluation.counterfactual_panel import CounterfactualRow
from mediffusion_core.reporting.counterfactual_pair import PAIR
from mediffusion_core.reporting.pictures import save_counterfactual_pair, save_sample_grid
from mediffusion_core.reporting.report import write_report

pytestmark = NEEDS_BROWSER

DARK, BRIGHT = 51, 204
SIZES = {"desktop": (1280, 800), "phone": (375, 812)}
FILES = ("report.html", "pictures/samples.png", "pictures/curves.png")
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with every part that a report may have."""
    folder = tmp_path_factory.mktemp("run")
    classes = ("Effusion", "Nodule")
    site = {"images": 120, "patients": 90, "train": 90, "labelled": 18, "test": 18}
    auc = {name: {"auc": 0.9, "interval": [0.8, 0.95], "positives": 9} for name in classes}
    summary = {
        "status": "completed",
        "auc_macro": 0.9,
        "auc_macro_interval": [0.85, 0.94],
        "auc_per_class": auc,
        "counterfactual": {"flip_rate": 0.9, "eligible": 10, "count": 12, "l1": 0.02},
        "census": {f"a-site-with-a-long-name-{k}": {**site, "per_class": {}} for k in range(3)},
        "set_aside": [
            {"stage": "joint", "round": 3, "site": "x", "kind": "train", "reason": "no answer " * 9}
        ],
        "parameters": {"unet": 6_812_345},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "settings.json").write_text(json.dumps({"data": {"source": "x" * 300}}))
    lines = [{"stage": "evaluation", "round": k, "rounds": 2, "auc_macro": 0.5} for k in (0, 2)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    save_sample_grid(np.full((4, 1, 16, 16), 0.5), folder / "pictures" / "samples.png")
    save_sample_grid(np.full((4, 1, 16, 16), 0.5), folder / "pictures" / "curves.png")
    row = CounterfactualRow(
        source=np.full((1, 16, 16), DARK / 255),
        counterfactual=np.full((1, 16, 16), BRIGHT / 255),
        target="remove Effusion",
        classes=classes,
        before=np.array([0.93, 0.2]),
        after=np.array([0.07, 0.21]),
        flipped=True,
    )
    save_counterfactual_pair([row], folder / "pictures" / PAIR)
    return write_report(folder)


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The report, opened; closing it fails where a script or a file did."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    problems: list[str] = []
    opened.on("console", lambda message: problems.append(f"console: {message.text}"))
    opened.on("pageerror", lambda error: problems.append(f"error: {error}"))
    opened.on("requestfailed", lambda request: problems.append(f"failed: {request.url[:90]}"))
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert problems == []


def shade(page: Page, across: float) -> int:
    """The grey value of the pair at a share of its width, away from texts and handle."""
    box: Any = page.locator("#views").bounding_box()
    shown = Image.open(io.BytesIO(page.locator("#views").screenshot())).convert("L")
    return int(shown.getpixel((int(across * box["width"]), int(0.2 * box["height"]))))


def test_every_picture_is_shown_and_nothing_is_requested_from_elsewhere(
    browser: Browser, report: Path
) -> None:
    opened = browser.new_page()
    requested: list[str] = []
    opened.on("request", lambda request: requested.append(request.url))
    opened.goto(report.as_uri())
    for image in opened.locator("img").all():
        image.scroll_into_view_if_needed()
    opened.wait_for_function(
        "[...document.images].every((one) => one.complete && one.naturalWidth)"
    )
    print(f"\nfirst contentful paint: {opened.evaluate(FIRST_PAINT):.0f} ms")
    opened.close()
    files = [f"{report.parent.as_uri()}/{name}" for name in FILES]
    assert sorted(requested) == sorted(files)  # the pair stands in the page


def test_even_a_script_cannot_send_anything(browser: Browser, report: Path) -> None:
    opened = browser.new_page()
    opened.goto(report.as_uri())
    refused = opened.evaluate(
        """async () => {
          const refused = [];
          document.addEventListener("securitypolicyviolation",
            (event) => refused.push(event.effectiveDirective));
          new Image().src = "http://127.0.0.1:9/x.png";
          await fetch("http://127.0.0.1:9/").catch(() => {});
          await new Promise((done) => setTimeout(done, 50));
          return refused.sort();
        }"""
    )
    opened.close()
    assert refused == ["connect-src", "img-src"]


def test_the_keyboard_moves_the_divider_and_changes_the_image(page: Page) -> None:
    assert shade(page, 0.25) == DARK and shade(page, 0.75) == BRIGHT
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    divider = page.get_by_role("slider", name="Divider between image and counterfactual")
    assert divider.evaluate("(one) => one === document.activeElement")
    page.keyboard.press("Home")
    assert divider.get_attribute("aria-valuetext") == "0 % image, 100 % counterfactual"
    assert shade(page, 0.25) == BRIGHT
    page.keyboard.press("End")
    assert shade(page, 0.75) == DARK
    page.keyboard.press("ArrowLeft")
    assert divider.get_attribute("aria-valuetext") == "99 % image, 1 % counterfactual"


def test_the_mouse_moves_the_divider_to_where_it_is(page: Page) -> None:
    box: Any = page.locator("#views").bounding_box()
    page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    assert shade(page, 0.1) == DARK and shade(page, 0.3) == BRIGHT
    assert page.locator("#views input").input_value() == "20"


def test_the_view_is_chosen_and_kept(page: Page) -> None:
    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = ground()
    page.get_by_role("button", name="Dark view").click()
    dark = ground()
    page.wait_for_timeout(
        1000
    )  # Chromium's storage is in another process, which a reload can outrun
    page.reload()
    assert ground() == dark != light
    page.get_by_role("button", name="Light view").click()
    assert ground() == light


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, scheme: Any, size: str) -> None:
    width, height = SIZES[size]
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = Axe().run(page).response["violations"]
    for one in found:
        print(one["impact"], one["id"], [node["html"][:90] for node in one["nodes"]])
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_scripts_the_images_stand_side_by_side(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(report.as_uri())
    boxes: Any = [one.bounding_box() for one in opened.locator("#views img").all()]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] and boxes[0]["y"] == boxes[1]["y"]
    assert not opened.locator("#views input").is_visible()
    assert not opened.locator("#theme").is_visible()
    context.close()
