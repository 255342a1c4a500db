"""The live page in a real browser during a run: figures move, and it asks this machine alone."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.chromium import NEEDS_BROWSER
from playwright.sync_api import Browser, expect

from deployment.watch.server import WatchServer
from mediffusion_core.run_io.run_folder import RunFolder
from simulations.engine.in_process import run_in_process

pytestmark = NEEDS_BROWSER

LIMIT = 240_000
"""Milliseconds that the test waits for anything."""


@pytest.fixture
def folder(tiny: tuple[str, ...], few: tuple[str, ...], tmp_path: Path) -> Iterator[RunFolder]:
    """A run in another thread of this process, which begins as the test does."""
    folder = RunFolder(tmp_path / "run")
    places = (f"run.folder='{folder.path}'", f"data.store='{tmp_path / 'store'}'")
    run = threading.Thread(target=run_in_process, args=("config", [*tiny, *few, *places]))
    run.start()
    while not folder.metrics.is_file():
        assert run.is_alive()
        time.sleep(0.05)
    yield folder
    run.join()


@pytest.fixture
def address(folder: RunFolder) -> Iterator[str]:
    with WatchServer(folder.path, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.address
        server.shutdown()


def test_figures_move_and_nothing_outside_this_machine_is_asked(
    browser: Browser, address: str
) -> None:
    page = browser.new_page()
    page.set_default_timeout(LIMIT)
    problems: list[str] = []
    requested: list[str] = []
    page.on("console", lambda message: problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url[:90]}"))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(address)

    def fact(name: str) -> str:
        return f'#live-facts div:has(dt:text-is("{name}")) dd'

    first = page.locator(fact("Last round")).inner_text()
    assert page.locator(fact("Status")).inner_text() == "running"
    page.evaluate("window.kept = true")
    expect(page.locator(fact("Last round"))).not_to_have_text(first, timeout=LIMIT)
    expect(page.locator(fact("Status"))).to_have_text("completed", timeout=LIMIT)
    expect(page.locator(".quality .auc")).to_contain_text("AUC", timeout=LIMIT)
    assert page.locator("#live-sites tr").count() == 3
    assert page.evaluate("window.kept"), "the page was loaded anew"
    page.wait_for_function("[...document.images].every((one) => one.naturalWidth)")
    # The report's own script works on what took the place of the first report.
    page.locator("#views input").press("Home")
    assert page.locator("#views").evaluate("(one) => one.style.getPropertyValue('--at')") == "0%"
    page.get_by_role("button", name="Dark view").click()
    assert page.locator("#theme").inner_text() == "Light view"
    page.close()
    assert problems == []
    assert [url for url in requested if not url.startswith((address, "data:"))] == []
