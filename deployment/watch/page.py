"""The live page: the report of a run, with its state above and a script that renews both."""

import html

from deployment.watch.state import RunState
from mediffusion_core.reporting.report_page import POLICY

# ruff: noqa: E501
STYLE = """<link rel="icon" href="data:,">
<style>
#live { max-width: 1080px; margin: 0 auto; padding: 24px 24px 0; }
#live .facts { margin-top: 0; }
#live .box { margin-top: 14px; }
#live table { font-size: .88rem; }
#live.lost { opacity: .55; }
</style>
</head>"""

BAND = """
<section id="live" aria-label="State of the run" aria-live="off">
<dl class="facts" id="live-facts"></dl>
<div class="box"><table>
<thead><tr><th>Site</th><th class="left">Last reply</th><th class="left">Work</th><th class="left">Not counted</th><th>ε</th></tr></thead>
<tbody id="live-sites"></tbody>
</table></div>
</section>
"""

SCRIPT = """"use strict";
const PAUSE = 2000;  // milliseconds between two looks at the run
let version = null;

function element(tag, text, kind) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function showState(state) {
  document.getElementById("live-facts").replaceChildren(...state.facts.map(([name, text]) => {
    const pair = document.createElement("div");
    pair.append(element("dt", name), element("dd", text));
    return pair;
  }));
  document.getElementById("live-sites").replaceChildren(...state.sites.map((site) => {
    const row = document.createElement("tr");
    row.append(element("th", site.name), element("td", site.contact, "left"),
      element("td", site.work, "left"), element("td", site.note, "left"), element("td", site.epsilon));
    return row;
  }));
}

async function showReport(now) {
  const answer = await fetch("/", {cache: "no-store"});
  if (!answer.ok) throw new Error(answer.statusText);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const before = document.querySelector("main"), after = page.querySelector("main");
  const open = [...before.querySelectorAll("details[open] > summary")].map((one) => one.textContent);
  for (const summary of after.querySelectorAll("details > summary")) {
    if (open.includes(summary.textContent)) summary.parentElement.open = true;
  }
  for (const image of after.querySelectorAll('img:not([src^="data:"])')) {
    image.src = image.getAttribute("src") + "?" + now;  // or an older one of this name is shown
  }
  const divider = before.querySelector("#views input"), moved = after.querySelector("#views input");
  if (divider && moved) moved.value = divider.value;
  before.replaceWith(document.adoptNode(after));
  document.dispatchEvent(new Event("renewed"));
  document.title = page.title;
}

async function look() {
  const band = document.getElementById("live");
  try {
    const answer = await fetch("/state.json", {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.statusText);
    const state = await answer.json();
    showState(state);
    if (version !== null && version !== state.version) await showReport(state.version);
    version = state.version;
    band.classList.remove("lost");
  } catch (error) {
    band.classList.add("lost");  // the server is away, and may come back
  }
  setTimeout(look, PAUSE);
}

look();
"""


def live_page(report: str) -> str:
    """The report with the state of the run above it.

    Args:
        report: The report as HTML, with a `head`, a `body` and one `main` in it.
    """
    page = report.replace(POLICY, "", 1)  # the answer's own header lets the script below run too
    page = page.replace("</head>", STYLE, 1).replace("<main>", f"{BAND}<main>", 1)
    return page.replace("</body>", '<script src="/watch.js"></script>\n</body>', 1)


def refused_page(reason: str) -> str:
    """A page that says why there is none."""
    return f"<!doctype html>\n<title>watch</title>\n<p>{html.escape(reason)}</p>\n"


def as_json(state: RunState, version: str) -> dict[str, object]:
    """The state as the page's script takes it.

    Args:
        state: Of the run.
        version: Another one as soon as the report is another one.
    """
    return {
        "version": version,
        "facts": state.facts,
        "sites": [vars(site) for site in state.sites],
    }
