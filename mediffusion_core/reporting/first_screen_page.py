"""The first screen of the report's page: style, a part of its Jinja template, and its script.

They are code because Flower bundles neither HTML nor JavaScript.
"""

import base64
import hashlib

# ruff: noqa: E501
STYLE = """
.bar { display: flex; gap: 16px; align-items: baseline; justify-content: space-between; }
.bar .eyebrow { margin: 0; overflow-wrap: anywhere; }
.bar b { color: var(--ink); font-weight: 500; }
.theme {
  flex: none; display: none; font: inherit; font-size: .85rem; color: var(--muted); cursor: pointer;
  background: none; border: 1px solid var(--rule); border-radius: 99px; padding: 4px 14px;
}
.scripted .theme { display: block; }
.theme:hover { color: var(--ink); border-color: var(--faint); }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 3px; border-radius: 3px; }
.theme:focus-visible { border-radius: 99px; }
.lead { display: grid; gap: 44px 64px; margin-top: 34px; }
.lead h1 { font-size: clamp(1.75rem, 1.2rem + 2.1vw, 2.5rem); line-height: 1.14; letter-spacing: -.018em;
  font-weight: 650; text-wrap: balance; }
.lead p { margin: 0; }
.words { max-width: 60ch; }
.words .data { margin-top: 18px; font-size: 1.06rem; }
.quality { margin-top: 34px; }
.quality h2, .pair h2 { margin: 0; }
.quality h2 { font-size: .85rem; font-weight: 500; color: var(--muted); }
.quality .auc { font-size: 3.6rem; line-height: 1.1; font-weight: 650; letter-spacing: -.03em; }
.quality .auc small { font-size: .95rem; font-weight: 400; letter-spacing: 0; color: var(--muted); margin-left: 8px; }
.quality .meaning { margin-top: 16px; }
.axis { margin-top: 10px; }
.axis .scale { width: 100%; }
.axis .ticks { display: flex; justify-content: space-between; color: var(--muted); font-size: .78rem; }
.lead .hint { margin-top: 12px; }
.lead .caution { margin-top: 30px; padding-left: 14px; border-left: 3px solid var(--warn); font-size: .92rem; }
.pair { min-width: 0; }
.pair h2 { font-size: 1.05rem; line-height: 1.35; overflow-wrap: anywhere; }
.views { margin-top: 12px; display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
.view { position: relative; margin: 0; }
.view img { display: block; width: 100%; height: auto; border-radius: 8px; }
.view span, .edge { pointer-events: none; }
.view span {
  position: absolute; bottom: 10px; left: 10px; max-width: calc(50% - 20px); padding: 2px 10px; border-radius: 99px;
  background: rgb(10 14 18 / .78); color: #ffffff; font-size: .8rem; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap;
}
.views input, .edge, .hint.keys { display: none; }
.changes { margin-top: 18px; table-layout: fixed; }
.changes tbody th { font-weight: 600; }
.changes td, .changes th { padding: 7px 0 7px 16px; }
.changes th:first-child { padding-left: 0; white-space: normal; overflow-wrap: anywhere; }
.changes .wide { width: 96px; }
.changes .given { width: 70px; }
.changes .made { width: 120px; }
.changes .meter { display: grid; gap: 3px; }
.changes .meter i { display: block; height: 5px; border-radius: 3px; background: var(--blue); min-width: 2px; }
.changes .meter i:first-child { background: var(--band); }
.pair .outcome { margin-top: 12px; font-weight: 600; }
.pair dl { margin: 12px 0 0; font-size: .92rem; }
.pair dl div { display: flex; gap: 16px; justify-content: space-between; border-top: 1px solid var(--rule); padding: 7px 0; }
.pair dt { color: var(--muted); }
.pair dd { margin: 0; text-align: right; }
.visually-hidden {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
}
@media (min-width: 940px) {
  .lead { grid-template-columns: minmax(0, 1fr) minmax(0, 430px); }
  .lead.alone { grid-template-columns: minmax(0, 1fr); }
}
@media screen {
  .scripted .views { position: relative; display: block; isolation: isolate; --at: 50%; }
  .scripted .view + .view { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at)); }
  .scripted .view + .view span { left: auto; right: 10px; }
  .scripted .edge {
    display: block; position: absolute; top: 0; bottom: 0; left: var(--at); border-left: 2px solid #ffffff;
    margin-left: -1px; filter: drop-shadow(0 0 2px rgb(0 0 0 / .6));
  }
  .scripted .edge::after {
    content: "◂ ▸"; position: absolute; top: 50%; left: -1px; transform: translate(-50%, -50%); width: 46px; height: 46px;
    border-radius: 50%; background: #ffffff; color: #1f2933; font-size: 15px; line-height: 46px; text-align: center;
  }
  /* Half a thumb wider on both sides, so that the edge is where the pointer is. */
  main { overflow-x: clip; }
  .scripted .views input {
    display: block; position: absolute; top: 0; left: -23px; width: calc(100% + 46px); height: 100%; margin: 0;
    opacity: 0; cursor: ew-resize; touch-action: pan-y; -webkit-appearance: none; appearance: none;
  }
  .views input::-webkit-slider-thumb { -webkit-appearance: none; width: 46px; height: 46px; }
  .views input::-moz-range-thumb { width: 46px; height: 46px; border: 0; }
  .scripted .views:has(input:focus-visible) { outline: 3px solid var(--blue); outline-offset: 3px; border-radius: 8px; }
  .views input:focus-visible ~ .edge::after { box-shadow: 0 0 0 4px var(--blue); }
  .scripted .hint.keys { display: block; }
}
@media (max-width: 560px) {
  .lead { margin-top: 24px; }
  .quality .auc { font-size: 3rem; }
  .quality .auc small { display: block; margin-left: 0; }
  .changes .wide { display: none; }
}
"""

TEMPLATE = r"""
<header class="bar">
  <p class="eyebrow">Federated joint diffusion: report of one run<br><b>{{ title }}</b> <span class="status{% if status in ('complete', 'completed', 'finished', 'done') %} complete{% endif %}">{{ status }}</span></p>
  <button type="button" class="theme" id="theme">Dark view</button>
</header>

<section class="lead{% if not pair %} alone{% endif %}" aria-label="Summary">
  <div class="words">
    <h1>{{ heading }}</h1>
    {% if data %}
    <p class="data">{{ data | join(" ") | replace(" %", "\u00a0%") }}</p>
    {% endif %}
    <div class="quality">
      <h2>How well it classifies</h2>
      {% if quality.auc %}
      <p class="auc">{{ quality.auc }}<small>AUC{% if quality.interval %}, 95 % interval {{ quality.interval }}{% endif %}</small></p>
      <div class="axis" aria-hidden="true">
        {% set auc, low, high = quality.scale %}
        <div class="scale"><span class="band" style="left:{{ '%.1f' % (100 * low) }}%;width:{{ '%.1f' % (100 * (high - low)) }}%"></span><span class="dot" style="left:{{ '%.1f' % (100 * auc) }}%"></span></div>
        <div class="ticks"><span>0</span><span>0.5, guessing</span><span>1, perfect</span></div>
      </div>
      {% endif %}
      <p class="meaning">{{ quality.sentences | join(" ") }}</p>
    </div>
    <p class="caution">For research. Not a medical device: not validated for diagnosis, triage or treatment.</p>
    {% if not pair %}
    <p class="hint">{{ no_pair }}</p>
    {% endif %}
  </div>
  {% if pair %}
  <section class="pair" aria-labelledby="pair">
    <h2 id="pair">{{ texts.heading }}</h2>
    <div class="views" id="views">
      <div class="view"><img src="data:image/png;base64,{{ pair.image }}" alt="{{ texts.alt }}"><span aria-hidden="true">Image</span></div>
      <div class="view"><img src="data:image/png;base64,{{ pair.counterfactual }}" alt="{{ texts.counterfactual_alt }}"><span aria-hidden="true">Counterfactual</span></div>
      <input type="range" min="0" max="100" value="50" aria-label="Divider between image and counterfactual" aria-describedby="keys">
      <div class="edge" aria-hidden="true"></div>
    </div>
    <p class="hint keys" id="keys">Drag the divider, or use the arrow keys.</p>
    <table class="changes">
      <caption class="visually-hidden">Probabilities of the model</caption>
      <thead><tr><th scope="col">Probability</th><td class="wide"></td><th scope="col" class="given">Image</th><th scope="col" class="made">Counterfactual</th></tr></thead>
      <tbody>
      {% for one in texts.changes %}
      <tr><th scope="row">{{ one.name }}</th><td class="wide"><div class="meter" aria-hidden="true"><i style="width:{{ '%.1f' % one.widths[0] }}%"></i><i style="width:{{ '%.1f' % one.widths[1] }}%"></i></div></td><td>{{ figure(one.before) }}</td><td>{{ figure(one.after) }}</td></tr>
      {% endfor %}
      </tbody>
    </table>
    <p class="outcome">{{ texts.outcome }}</p>
    <dl>
    {% for name, text in texts.facts %}
      <div><dt>{{ name }}</dt><dd>{{ text }}</dd></div>
    {% endfor %}
    </dl>
    <p class="hint">A counterfactual explains the model and not the disease. This image is the first of a list drawn before training that was not yet classified as the target; it is shown whether or not its prediction flipped.</p>
  </section>
  {% endif %}
</section>
"""

SCRIPT = """
"use strict";
(() => {
  const root = document.documentElement;
  const kept = "mediffusion theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  root.classList.add("scripted");
  try { root.dataset.theme = localStorage.getItem(kept) || ""; } catch { /* not kept */ }

  function connectTheme() {
    const button = document.getElementById("theme");
    const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
    const name = () => { button.textContent = isDark() ? "Light view" : "Dark view"; };
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.setItem(kept, root.dataset.theme); } catch { /* not kept */ }
      name();
    });
    system.onchange = name;
    name();
  }

  function connectDivider() {
    const views = document.getElementById("views");
    if (!views) return;
    const input = views.querySelector("input");
    const move = () => {
      views.style.setProperty("--at", input.value + "%");
      input.setAttribute("aria-valuetext",
        `${input.value} % image, ${100 - input.value} % counterfactual`);
    };
    input.addEventListener("input", move);
    move();
  }

  function connect() { connectTheme(); connectDivider(); }
  document.addEventListener("DOMContentLoaded", connect);
  document.addEventListener("renewed", connect);  // by a page that shows a newer report in its place
})();
"""

SCRIPT_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
"""Names the one script that the page's content security policy lets run."""
