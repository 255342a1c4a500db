"""The page of the study, a Jinja template. It is code because Flower bundles no HTML."""

# ruff: noqa: E501
PAGE = r"""{% macro table(title, headings, lines, label) %}
<h2>{{ title }}</h2>
<div class="box" role="region" tabindex="0" aria-label="{{ label }}"><table>
  <thead><tr>{% for one in headings %}<th scope="col">{{ one }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for cells in lines %}
  <tr><th scope="row">{{ cells[0] }}</th>{% for one in cells[1:] %}<td>{{ one }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>Utility and leakage against ε</title>
<style>
{{ style | safe }}
.first { max-width: 78ch; margin: 20px 0 0; }
.note { color: var(--muted); font-size: .9rem; margin: 8px 0; max-width: 90ch; }
.alarm { border: 2px solid var(--bad); border-radius: 10px; padding: 14px 18px; margin: 24px 0 0; color: var(--bad); }
.alarm h2 { margin: 0 0 6px; }
.alarm ul { margin: 0; padding-left: 20px; }
.suspect { border-color: var(--warn); color: var(--warn); }
figure { margin: 24px 0 0; padding: 14px; }
figure img { display: block; width: 100%; filter: var(--chart-filter); mix-blend-mode: var(--chart-blend); }
figcaption { color: var(--muted); font-size: .86rem; padding-top: 8px; }
</style>
</head>
<body>
<main>
<header>
  <p class="eyebrow">Study of privacy</p>
  <h1>Utility and leakage against ε</h1>
  <p class="first">{{ first }}</p>
</header>

{% for title, lines, kind in boxes %}
<section class="alarm{{ kind }}" role="alert">
  <h2>{{ title }}</h2>
  <ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>
</section>
{% endfor %}

{% if chart %}
<figure>
  <img alt="Macro AUC, calibration error, audited ε and members found, against the promised ε; the tables below have the numbers" src="data:image/png;base64,{{ chart }}">
  <figcaption>Grey dots are runs, blue the mean over seeds with its 95 % interval. Below: each dot is one audit or one attack; ∞ promises nothing.</figcaption>
</figure>

{% for one in tables %}
{{ table(one.title, one.headings, one.lines, one.title) }}
{% for text in one.notes %}
<p class="note">{{ text }}</p>
{% endfor %}
{% endfor %}
{% endif %}

<h2>Terms of the promise</h2>
<dl class="facts">
{% for name, text in facts %}
  <div><dt>{{ name }}</dt><dd>{{ text }}</dd></div>
{% endfor %}
</dl>

{% if warnings %}
{{ table("Warnings", ["Run", "Warning"], warnings, "Warnings") }}
{% endif %}
</main>
</body>
</html>
"""
