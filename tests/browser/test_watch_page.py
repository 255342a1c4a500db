"""The live page in a real browser during a run: figures move, and it asks this machine alone."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.chromium import BROWSER, BROWSERS, Chromium

from deployment.watch.server import WatchServer
from mediffusion_core.run_io.run_folder import RunFolder
from simulations.engine.in_process import run_in_process

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed"),
]

FACT = """(() => {{
  const found = [...document.querySelectorAll("#live-facts > div")]
    .find((one) => one.querySelector("dt").textContent === "{}");
  return found ? found.querySelector("dd").textContent : "";
}})()"""
AUC = 'document.querySelector(".card .value").textContent.trim()'
PICTURES = '[...document.querySelectorAll("main img")].map((one) => [one.src, one.naturalWidth])'


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


def test_figures_move_and_nothing_outside_this_machine_is_asked(
    folder: RunFolder, tmp_path: Path
) -> None:
    with WatchServer(folder.path, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Chromium(tmp_path / "profile") as browser:
            browser.open(server.address)
            rounds = [browser.wait_for(FACT.format("Last round"))]
            assert browser.evaluate(FACT.format("Status")) == "running"
            browser.evaluate("window.kept = true")
            first = browser.evaluate(AUC)
            rounds.append(browser.wait_for(FACT.format("Last round"), lambda t: t not in rounds))
            browser.wait_for(FACT.format("Status"), lambda text: text == "completed")
            browser.wait_for(f"{AUC} !== {first!r}")
            assert browser.evaluate('document.querySelectorAll("#live-sites tr").length') == 3
            assert browser.evaluate("window.kept"), "the page was loaded anew"
            browser.wait_for(PICTURES, lambda all: bool(all) and min(width for _, width in all) > 0)
            assert browser.errors == []
            outside = [url for url in browser.requests if not url.startswith(server.address)]
            assert [url for url in outside if not url.startswith("data:")] == []
            server.shutdown()
