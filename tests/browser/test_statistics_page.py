"""The page of statistics in a real browser: charts and tables for everyone, and no request."""

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from helpers.chromium import NEEDS_BROWSER
from playwright.sync_api import Browser

from mediffusion_core.evaluation.site_statistics import BINS
from mediffusion_core.reporting.statistics import write_statistics

pytestmark = NEEDS_BROWSER

SIZES = {"desktop": (1280, 800), "phone": (375, 812)}


def cell(count: int | None) -> dict[str, Any]:
    return {"count": count, "suppressed_at": int(count is None)}


def place(images: int) -> dict[str, Any]:
    """Figures of a place with every part that the page may have."""
    states = {"positive": cell(None), "negative": cell(images - 30), "missing": cell(30)}
    channel = {
        "histogram": [images * (one % 7) for one in range(BINS)],
        "suppressed_at": [int(one > 29) for one in range(BINS)],
        "shown": 0.98,
        "mean": 0.4,
        "deviation": 0.2,
    }
    return {
        "images": images,
        "units": images,
        "unit": "patient",
        "labelled": {"labelled": cell(images - 30), "unlabelled": cell(30)},
        "classes": {name: {**states, "prevalence": None} for name in ("Effusion", "Nodule")},
        "subgroups": {"sex": {"female": cell(40), "male": cell(None)}},
        "intensity": [channel] * 3,
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    figures = {
        "source": "folder",
        "privacy": None,
        "sites": {f"a-site-with-a-long-name-{number}": place(100) for number in range(4)},
        "pooled": place(400),
        "set_aside": [{"site": "x", "kind": "query", "reason": "no answer " * 9}],
    }
    return write_statistics(tmp_path_factory.mktemp("statistics"), figures)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_nothing_is_requested(
    browser: Browser, written: Path, scheme: Any, size: str
) -> None:
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(written.as_uri())
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    assert page.locator("svg").count() == 3 * 5
    assert page.get_by_role("cell", name="suppressed", exact=True).count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert requested == [written.as_uri()]
    page.close()
