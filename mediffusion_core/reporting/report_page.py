"""The report's page, a Jinja template. It is code because Flower bundles no HTML."""

from mediffusion_core.reporting import first_screen_page

# ruff: noqa: E501
POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "img-src 'self' file: data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{first_screen_page.SCRIPT_HASH}'; base-uri 'none'; form-action 'none'\">"
)
"""Lets the page load pictures beside it, and run its own script alone."""
_HEAD = r"""{% macro figure(text) -%}
<span{% if text == not_measured %} class="missing"{% endif %}>{{ text }}</span>
{%- endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{{ policy | safe }}
<title>{{ title }} – Mediffusion report</title>
<style>
{{ style | safe }}
.status {
  border: 1px solid currentColor; color: var(--warn); border-radius: 99px;
  padding: 0 10px; margin-left: 4px; font-size: .8rem;
}
.status.complete { color: var(--good); }
.cards {
  display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(min(290px, 100%), 1fr));
}
.card {
  background: var(--paper); border: 1px solid var(--rule); border-radius: 10px;
  padding: 16px 18px; min-height: 116px;
}
.card h3 { margin: 0; font-size: .85rem; font-weight: 500; color: var(--muted); }
.card p { margin: 0; }
.card .value { font-size: 1.9rem; line-height: 1.35; font-weight: 600; }
.card .value .missing { font-size: 1.1rem; font-weight: 400; }
.card .note { color: var(--muted); font-size: .85rem; }
.warnings { margin: 0; padding: 0 0 0 14px; border-left: 3px solid var(--warn); list-style: none; }
.warnings li { max-width: 78ch; margin: 0 0 10px; }
.missing { color: var(--muted); font-style: italic; }
td.wrap { white-space: normal; color: var(--muted); min-width: 200px; }
.scale { position: relative; width: 320px; height: 14px; }
.scale::before {
  content: ""; position: absolute; inset: 6px 0 auto; border-top: 1px solid var(--rule);
}
.scale::after {
  content: ""; position: absolute; left: 50%; top: 1px; bottom: 1px;
  border-left: 1px solid var(--faint);
}
.scale .band {
  position: absolute; top: 3px; height: 7px; border-radius: 4px; background: var(--band);
}
.scale .dot {
  position: absolute; top: 3px; width: 7px; height: 7px; margin-left: -3px; border-radius: 50%;
  background: var(--blue); z-index: 1;
}
figure { margin: 0 0 18px; overflow: hidden; }
figure a { display: block; background: #ffffff; padding: 12px; }
figure.chart a { background: none; }
.chart img { filter: var(--chart-filter); mix-blend-mode: var(--chart-blend); }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { padding: 12px 18px; border-top: 1px solid var(--rule); color: var(--muted);
  font-size: .9rem; }
figcaption b { color: var(--ink); font-weight: 600; }
details { margin-top: 14px; }
summary { cursor: pointer; padding: 10px 0; font-weight: 500; }
pre { margin: 0; padding: 14px 0; font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas,
  "DejaVu Sans Mono", monospace; }
.facts.run { margin: 0 2px 18px; }
.hint { color: var(--muted); font-size: .88rem; margin: 10px 2px 0; }
@media (max-width: 560px) {
  main { padding: 24px 14px 48px; }
  .cards { grid-template-columns: 1fr 1fr; gap: 8px; }
  .card { padding: 12px 14px; min-height: 0; }
  .card .value { font-size: 1.45rem; }
  .box { padding: 2px 14px; }
  .scale { width: 160px; }
  td.wrap { min-width: 0; }
  .notes th { white-space: normal; }
  figure a { padding: 6px; }
}
@media print {
  body { background: none; }
  main { padding: 0; max-width: none; }
  figure, .card, tr { break-inside: avoid; }
}
"""

_BODY = r"""
</style>
<script>{{ script | safe }}</script>
</head>
<body>
<main>
"""

_DETAILS = r"""
{% if warnings %}
<h2>Warnings</h2>
<ul class="warnings">
{% for warning in warnings %}
  <li><b>{{ warning.name | capitalize }}.</b> {{ warning.text }}</li>
{% endfor %}
</ul>
{% endif %}

<h2>Headline figures</h2>
<section class="cards" aria-label="Headline figures">
{% for card in cards %}
  <div class="card">
    <h3>{{ card.name }}</h3>
    <p class="value">{{ figure(card.value) }}</p>
    {% if card.note %}
    <p class="note">{{ card.note }}</p>
    {% endif %}
  </div>
{% endfor %}
</section>

<h2>AUC of each class, test set</h2>
{% if classes %}
<div class="box" role="region" tabindex="0" aria-label="AUC of each class"><table>
  <thead><tr><th>Class</th><th>Positives</th><th>AUC</th><th>95 % interval</th><th class="left">0 to 1, tick at 0.5</th></tr></thead>
  <tbody>
  {% for row in classes %}
  <tr>
    <th scope="row">{{ row.name }}</th>
    <td>{{ figure(row.positives) }}</td>
    <td>{{ figure(row.auc) }}</td>
    <td>{{ figure(row.interval or not_measured) }}</td>
    <td class="left"><div class="scale" aria-hidden="true">
      {%- if row.bounds %}<span class="band" style="left:{{ '%.1f' % (100 * row.bounds[0]) }}%;width:{{ '%.1f' % (100 * (row.bounds[1] - row.bounds[0])) }}%"></span>{% endif %}
      {%- if row.dot is not none %}<span class="dot" style="left:{{ '%.1f' % (100 * row.dot) }}%"></span>{% endif -%}
    </div></td>
  </tr>
  {% endfor %}
  </tbody>
</table></div>
{% else %}
<p class="missing">{{ not_measured }}</p>
{% endif %}

<h2>Sites</h2>
{% if sites %}
<div class="box" role="region" tabindex="0" aria-label="Sites"><table>
  <thead><tr><th>Site</th><th>Images</th><th>Patients</th><th>Train</th><th>of it labelled</th><th>Validation</th><th>Test</th><th>AUC</th></tr></thead>
  <tbody>
  {% for name, cells in sites %}
  <tr><th scope="row">{{ name }}</th>{% for cell in cells %}<td>{{ figure(cell) }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
{% else %}
<p class="missing">{{ not_measured }}</p>
{% endif %}

{% if set_aside %}
<h3>Replies that did not count</h3>
<div class="box" role="region" tabindex="0" aria-label="Replies that did not count"><table class="notes">
  <thead><tr><th>Round</th><th>Site</th><th>Message</th><th class="left">Reason</th></tr></thead>
  <tbody>
  {% for round, site, kind, reason in set_aside %}
  <tr><th scope="row">{{ round }}</th><td>{{ site }}</td><td>{{ kind }}</td><td class="left wrap">{{ reason }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
{% endif %}

<h2>Counterfactuals, all of the panel</h2>
<div class="box" role="region" tabindex="0" aria-label="Figures of the counterfactuals"><table class="notes">
  <tbody>
  {% for name, value, note in counterfactual %}
  <tr><th scope="row">{{ name }}</th><td>{{ figure(value) }}</td><td class="left wrap">{{ note }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>

{% if pictures %}
<h2>Pictures</h2>
{% for picture in pictures %}
<figure{% if picture.is_chart %} class="chart"{% endif %}>
  <a href="{{ picture.source }}"><img src="{{ picture.source }}" alt="{{ picture.name }}"></a>
  <figcaption><b>{{ picture.name }}.</b> {{ picture.caption }}</figcaption>
</figure>
{% endfor %}
{% endif %}

<h2>The run</h2>
<dl class="facts run">
{% for name, text in facts %}
  <div><dt>{{ name }}</dt><dd>{{ text }}</dd></div>
{% endfor %}
</dl>
{% if parameters %}
<div class="box" role="region" tabindex="0" aria-label="Parameters"><table>
  <thead><tr><th>Component</th><th>Parameters</th></tr></thead>
  <tbody>
  {% for name, number in parameters %}
  <tr><th scope="row">{{ name }}</th><td>{{ figure(number) }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
{% endif %}
{% if stages %}
<details><summary>Stages</summary>
<div class="box" role="region" tabindex="0" aria-label="Stages"><table>
  <thead><tr><th>Stage</th><th>Last round</th><th>Rounds</th><th>Ended after</th></tr></thead>
  <tbody>
  {% for stage in stages %}
  <tr><th scope="row">{{ stage.name }}</th><td>{{ stage.round }}</td><td>{{ figure(stage.rounds) }}</td><td>{{ figure(stage.time) }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
</details>
{% endif %}
{% if evaluations %}
<details><summary>Every evaluation</summary>
<div class="box" role="region" tabindex="0" aria-label="Every evaluation"><table>
  <thead><tr><th>Joint round</th><th>AUC, test</th><th>AUC, pooled</th><th>FID</th><th>KID</th><th>Flip rate</th></tr></thead>
  <tbody>
  {% for row in evaluations %}
  <tr>{% for cell in row %}<td>{{ figure(cell) }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
<p class="hint">Round 0 is the untrained model.</p>
</details>
{% endif %}
{% if settings %}
<details><summary>Settings</summary>
<div class="box" role="region" tabindex="0" aria-label="Settings"><pre>{{ settings }}</pre></div>
</details>
{% endif %}
</main>
</body>
</html>
"""

PAGE = _HEAD + first_screen_page.STYLE + _BODY + first_screen_page.TEMPLATE + _DETAILS
"""Needs the values of `write_report`."""
