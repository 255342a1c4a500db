"""The page of statistics, a Jinja template. It is code because Flower bundles no HTML."""

# ruff: noqa: E501
PAGE = r"""{% macro cell(text) -%}
<td{% if text == suppressed %} class="suppressed"{% endif %}>{{ text }}</td>
{%- endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>{{ source }} – statistics of {{ names | length }} sites</title>
<style>
{{ style | safe }}
.note { color: var(--muted); font-size: .9rem; margin: 8px 0; }
.suppressed { color: var(--muted); font-style: italic; }
td small { display: block; color: var(--muted); font-size: .82rem; font-style: normal; }
tbody tr.all { border-top: 2px solid var(--faint); }
.charts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); margin: 0 0 14px; }
figure { margin: 0; padding: 12px; }
figure svg { display: block; width: 100%; height: 96px; }
figcaption { color: var(--muted); font-size: .86rem; padding-top: 8px; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
.bar { fill: var(--band); } .hidden { fill: var(--rule); }
.pooled { fill: none; stroke: var(--warn); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.axis { display: flex; justify-content: space-between; color: var(--muted); font-size: .78rem; border-top: 1px solid var(--faint); }
h3 { font-size: .95rem; font-weight: 500; color: var(--muted); margin: 0 0 6px; }
</style>
</head>
<body>
<main>
<header>
  <p class="eyebrow">Statistics before a run</p>
  <h1>{{ source }}</h1>
  <dl class="facts">
  {% for name, text in facts %}
    <div><dt>{{ name }}</dt><dd>{{ text }}</dd></div>
  {% endfor %}
  </dl>
</header>

<h2>Sites</h2>
<div class="box" role="region" tabindex="0" aria-label="Sites"><table>
  <thead><tr><th>Site</th><th>Images</th><th>{{ unit | capitalize }}s</th><th>Labelled</th><th>Unlabelled</th></tr></thead>
  <tbody>
  {% for name, cells in sites %}
  <tr{% if loop.last and sites | length > 1 %} class="all"{% endif %}><th scope="row">{{ name }}</th>{% for text in cells %}{{ cell(text) }}{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
{% if private %}
<p class="note">All counts have noise, and are of {{ unit }}s: each counts by the mean over its images. Negative counts read 0.</p>
{% else %}
<p class="note"><span class="suppressed">{{ suppressed }}</span>: a site does not send a count of fewer patients than its minimum, nor a count that would give such a count back. ≥: some sites suppress their part.</p>
{% endif %}

<h2>Classes</h2>
<p class="note">Share of positives among the known labels, over the sites that send both; below it the numbers of labels.</p>
<div class="box" role="region" tabindex="0" aria-label="Classes"><table>
  <thead><tr><th>Class</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for name, places in classes %}
  <tr><th scope="row">{{ name }}</th>
    {%- for one in places %}<td{% if one.prevalence == suppressed %} class="suppressed"{% endif %}>{{ one.prevalence }}{% for text in one.counts %}<small>{{ text }}</small>{% endfor %}</td>{% endfor -%}
  </tr>
  {% endfor %}
  </tbody>
</table></div>

<h2>Sex and age</h2>
<p class="note">{% if private %}{{ unit | capitalize }}s; noise alone where the data have no sex or age.{% else %}Images. A subgroup that is absent reads “{{ suppressed }}” too.{% endif %}</p>
<div class="box" role="region" tabindex="0" aria-label="Sex and age"><table>
  <thead><tr><th>Subgroup</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for name, cells in subgroups %}
  <tr><th scope="row">{{ name }}</th>{% for text in cells %}{{ cell(text) }}{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>

<h2>Intensities</h2>
<p class="note">Share of pixels in {{ intensities[0][1][0].bars | length }} bins from 0, black, to 1. The line is that of all sites.{% if not private %} A grey column is a bin that is suppressed.{% endif %}</p>
{% for channel, charts in intensities %}
{% if intensities | length > 1 %}
<h3>{{ channel }}</h3>
{% endif %}
<div class="charts">
{% for chart in charts %}
<figure>
  <svg viewBox="0 0 {{ 4 * chart.bars | length }} 48" preserveAspectRatio="none" role="img" aria-label="Intensities of {{ chart.place }}: mean {{ chart.mean }}, standard deviation {{ chart.deviation }}">
  {% for height in chart.bars %}
    {% if chart.hidden[loop.index0] %}
    <rect class="hidden" x="{{ 4 * loop.index0 }}" y="0" width="3.4" height="48"/>
    {% endif %}
    <rect class="bar" x="{{ 4 * loop.index0 }}" y="{{ '%.2f' % (48 - 46 * height) }}" width="3.4" height="{{ '%.2f' % (46 * height) }}"/>
  {% endfor %}
  {% if chart.line %}
    <polyline class="pooled" points="{% for height in chart.line %}{{ 4 * loop.index0 + 1.7 }},{{ '%.2f' % (48 - 46 * height) }} {% endfor %}"/>
  {% endif %}
  </svg>
  <div class="axis" aria-hidden="true"><span>0</span><span>1</span></div>
  <figcaption><b>{{ chart.place }}.</b> Mean {{ chart.mean }}, standard deviation {{ chart.deviation }}{% if chart.hidden | select | list %}, of {{ chart.shown }} of the pixels{% endif %}.</figcaption>
</figure>
{% endfor %}
</div>
{% endfor %}

{% if set_aside %}
<h2>Replies that do not count</h2>
<div class="box" role="region" tabindex="0" aria-label="Replies that do not count"><table>
  <thead><tr><th>Site</th><th class="left">Reason</th></tr></thead>
  <tbody>
  {% for site, reason in set_aside %}
  <tr><th scope="row">{{ site }}</th><td class="left">{{ reason }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
{% endif %}
</main>
</body>
</html>
"""
