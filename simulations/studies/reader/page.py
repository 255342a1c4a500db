"""The page for readers: one HTML file that works offline and sends nothing."""

from collections.abc import Sequence

from torch import Tensor

from mediffusion_core.reporting.pages import render_page
from mediffusion_core.reporting.style import as_png, tile_size
from simulations.studies.reader.pairs import Item, Pairs

QUESTIONS = {
    "change": "Which shows the requested change better?",
    "rest": "Which keeps the rest of the image better?",
    "real": "Which looks more like a real image?",
}
CHOICES = {"left": "left", "equal": "no difference", "right": "right"}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Reader study</title>
<style>
{{ style | safe }}
.item { padding: 18px; margin: 18px 0; border: 1px solid var(--rule); border-radius: 10px;
  background: var(--paper); }
.item h2 { margin-top: 0; }
.images { display: grid; grid-template-columns: repeat(3, minmax(0, 256px)); gap: 16px; }
.images figure { margin: 0; border: 0; }
.images img { width: 100%; display: block; }
figcaption { color: var(--muted); font-size: .85rem; }
fieldset { border: 0; padding: 0; margin: 12px 0 0; }
label { margin-right: 18px; }
button { font: inherit; padding: 8px 18px; }
</style>
</head>
<body>
<main>
<h1>Reader study</h1>
<p>Each item shows an image, and two changed versions of it that a computer drew. Please answer the
questions for every item, then save your answers and send the file back. Nothing is sent by this
page. Until then this browser keeps what you have answered, should the page be closed.</p>
<form id="form" data-study="{{ study }}">
<p><label>Your name or number <input name="reader" required maxlength="80"></label></p>
{% for item in items %}
<section class="item">
  <h2>{{ loop.index }} of {{ items | length }}. {{ item.asked }}</h2>
  <div class="images">
  {% for name, image in item.images %}
    <figure><img alt="{{ name }}" src="data:image/png;base64,{{ image }}">
    <figcaption>{{ name }}</figcaption></figure>
  {% endfor %}
  </div>
  {% set number = loop.index0 %}
  {% for key, question in questions.items() %}
  <fieldset><legend>{{ question }}</legend>
    {% for choice, text in choices.items() %}
    <label><input type="radio" name="{{ number }}.{{ key }}" value="{{ choice }}">
    {{ text }}</label>
    {% endfor %}
  </fieldset>
  {% endfor %}
</section>
{% endfor %}
<p><button type="submit">Save answers</button> <span id="status"></span></p>
</form>
</main>
<script>
const form = document.getElementById("form");
const status = document.getElementById("status");
const kept = "reader study " + form.dataset.study;
const questions = new Set([...form.querySelectorAll("[type=radio]")].map((one) => one.name)).size;

function given() {
  const answers = Object.fromEntries(new FormData(form));
  const reader = answers.reader;
  delete answers.reader;
  return {study: form.dataset.study, reader: reader, answers: answers};
}
function open() {
  return questions - Object.keys(given().answers).length;
}
function left() {
  return "Still open: " + open() + " of " + questions + " questions.";
}
function show() {
  status.textContent = open() ? left() : "All questions are answered.";
}
function keep() {
  localStorage.setItem(kept, JSON.stringify(given()));
}
function restore() {
  const before = JSON.parse(localStorage.getItem(kept) || "null");
  if (!before) return;
  form.elements.reader.value = before.reader;
  for (const [name, value] of Object.entries(before.answers)) {
    form.querySelector(`[name="${name}"][value="${value}"]`).checked = true;
  }
}

try { restore(); } catch (error) { console.warn(error); }
show();
form.addEventListener("input", () => {
  show();
  try { keep(); } catch (error) { console.warn(error); }
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (open() && !confirm(left() + " Save the given answers?")) return;
  const answers = given();
  const link = document.createElement("a");
  const text = JSON.stringify(answers, null, 2);
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "answers-" + answers.reader.replace(/[^A-Za-z0-9-]+/g, "_") + ".json";
  document.body.append(link);
  link.click();
  setTimeout(() => { URL.revokeObjectURL(link.href); link.remove(); }, 1000);
});
</script>
</body>
</html>
"""


def reader_page(study: str, items: Sequence[Item], pairs: Pairs, asked: Sequence[str]) -> str:
    """The page as HTML; it does not reveal the method of an image.

    Args:
        study: Identifier of the study, which the answers repeat.
        items: The items in their order.
        pairs: The images.
        asked: The target of each pair, as text.
    """
    shown = [
        {
            "asked": asked[item.pair],
            "images": [
                ("image", _picture(pairs.sources[item.pair])),
                ("left", _picture(pairs.made[item.left][item.pair])),
                ("right", _picture(pairs.made[item.right][item.pair])),
            ],
        }
        for item in items
    ]
    return render_page(PAGE, study=study, items=shown, questions=QUESTIONS, choices=CHOICES)


def _picture(image: Tensor) -> str:
    """A PNG of an image (C, H, W), in base64."""
    return as_png(image, tile_size(*image.shape[1:]))
