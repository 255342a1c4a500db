"""The readers' page in a real browser: what a reader clicks is what the score reads."""

import html
import json
import re
import subprocess
from pathlib import Path

import torch
from helpers.chromium import BROWSER, NEEDS_BROWSER

from mediffusion_core.run_io.run_folder import write_json
from simulations.studies.reader.page import QUESTIONS, reader_page
from simulations.studies.reader.pairs import EXTERNAL, OURS, Item, Pairs
from simulations.studies.reader.score import score_answers

pytestmark = NEEDS_BROWSER

ITEMS = [Item(0, OURS), Item(1, EXTERNAL), Item(0, EXTERNAL)]
READER = """
<script>
const choices = {choices};
const linked = new Promise((resolve) => {{ URL.createObjectURL = (blob) => {{
  blob.text().then(resolve);
  return "about:blank#saved";
}}; }});
HTMLAnchorElement.prototype.click = function () {{ document.body.dataset.file = this.download; }};
window.confirm = (text) => {{ document.body.dataset.asked = text; return {agrees}; }};
document.body.dataset.found = JSON.stringify(given().answers);
form.querySelector("[name=reader]").value = {reader};
for (const [name, value] of Object.entries(choices)) {{
  form.querySelector(`[name="${{name}}"][value="${{value}}"]`).click();
}}
form.querySelector("button").click();
linked.then((text) => {{ document.body.dataset.saved = text; }});
</script>
"""
"""Stands in for a reader, and for the folder into which a browser saves."""


def page() -> str:
    generator = torch.Generator().manual_seed(0)

    def images() -> torch.Tensor:
        return torch.rand(2, 1, 16, 16, generator=generator)

    return reader_page(
        "abc", ITEMS, Pairs(images(), {OURS: images(), EXTERNAL: images()}), ["one", "two"]
    )


def visited(
    folder: Path, choices: dict[str, str], reader: str, agrees: bool = False
) -> dict[str, str]:
    """The state of the page after a reader has made the choices and pressed the button.

    Args:
        folder: Of the page, and of what the browser keeps from one visit to the next.
        choices: Answers by name.
        reader: Whose.
        agrees: Whether the reader confirms what the page asks.
    """
    assert BROWSER is not None
    script = READER.format(
        choices=json.dumps(choices), reader=json.dumps(reader), agrees=json.dumps(agrees)
    )
    folder.mkdir(exist_ok=True)
    path = folder / "page.html"
    path.write_text(page().replace("</body>", script + "</body>"), encoding="utf-8")
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=3000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    body = re.search(r"<body([^>]*)>", done.stdout)
    assert body is not None, done.stdout[:500]
    return {
        name: html.unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', body[1])
    }


def answers(side_of_ours: bool) -> dict[str, str]:
    """Ours wherever it stands, or always the other one."""
    sides = {True: "left", False: "right"}
    return {
        f"{number}.{question}": sides[(item.left == OURS) == side_of_ours]
        for number, item in enumerate(ITEMS)
        for question in QUESTIONS
    }


def test_the_answers_of_a_reader_are_scored(tmp_path: Path) -> None:
    given = visited(tmp_path, answers(side_of_ours=True), "Dr. Ada / 1")
    assert given["file"] == "answers-Dr_Ada_1.json" and "asked" not in given
    saved = tmp_path / given["file"]
    saved.write_text(given["saved"], encoding="utf-8")
    shown = [{"pair": item.pair, "left": item.left} for item in ITEMS]
    write_json(tmp_path / "key.json", {"study": "abc", "seed": 0, "pairs": 2, "items": shown})
    score_answers(tmp_path, [saved])
    scores = json.loads((tmp_path / "scores.json").read_text())
    for question in QUESTIONS:
        assert scores["all"][question]["preference"] == 1.0
        figures = scores["readers"]["Dr. Ada / 1"][question]
        assert (figures["ours"], figures["repeated_alike"], figures["unanswered"]) == (2, 1, 0)


def test_open_questions_are_saved_if_the_reader_wants_it(tmp_path: Path) -> None:
    some = dict(list(answers(side_of_ours=True).items())[:-1])
    given = visited(tmp_path / "no", some, "Ada", agrees=False)
    assert "saved" not in given and "file" not in given
    assert given["asked"].startswith("Still open: 1 of 9 questions.")
    given = visited(tmp_path / "yes", some, "Ada", agrees=True)
    assert json.loads(given["saved"])["answers"] == some


def test_a_closed_page_comes_back_with_its_answers(tmp_path: Path) -> None:
    every = answers(side_of_ours=False)
    first = dict(list(every.items())[:4])
    assert json.loads(visited(tmp_path, first, "Ada")["found"]) == {}
    again = visited(tmp_path, {}, "Ada", agrees=True)
    assert json.loads(again["found"]) == first == json.loads(again["saved"])["answers"]
