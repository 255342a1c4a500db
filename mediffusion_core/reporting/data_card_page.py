"""The data card's page, a Jinja template. It is code because Flower bundles no HTML."""

# ruff: noqa: E501
PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ source }} – data card</title>
<style>
{{ style | safe }}
.note { color: var(--muted); font-size: .9rem; margin: 0 0 4px; }
ul.findings { list-style: none; margin: 0; padding: 6px 0; }
ul.findings li { padding: 5px 0; display: flex; gap: 12px; }
.grade { flex: 0 0 5.5em; font-size: .85rem; }
.ok { color: var(--good); } .warning { color: var(--warn); } .error { color: var(--bad); font-weight: 600; }
figure { margin: 0 0 16px; padding: 12px; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: .88rem; padding-top: 8px; overflow-wrap: anywhere; }
.pairs { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); }
.pairs figure { margin: 0; }
td.some { color: var(--muted); }
</style>
</head>
<body>
<main>
<header>
  <p class="eyebrow">Data card</p>
  <h1>{{ source }}</h1>
  <dl class="facts">
  {% for name, text in facts %}
    <div><dt>{{ name }}</dt><dd>{{ text }}</dd></div>
  {% endfor %}
  </dl>
</header>

<h2>Checks</h2>
<div class="box"><ul class="findings">
{% for finding in findings %}
  <li><span class="grade {{ finding.grade }}">{{ finding.grade }}</span><span>{{ finding.text }}</span></li>
{% endfor %}
</ul></div>

<h2>Sites</h2>
<div class="box"><table>
  <thead><tr><th>Site</th><th>Patients or lesions</th><th>Train</th><th>of it labelled</th><th>Validation</th><th>Test</th></tr></thead>
  <tbody>
  {% for site in sites %}
  <tr><th scope="row">{{ site.name }}</th><td>{{ site.patients }}</td><td>{{ site.train }}</td><td>{{ site.labelled }}</td><td>{{ site.validation }}</td><td>{{ site.test }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
<p class="note">In two splits or at two sites: <b class="{{ 'error' if overlaps else 'ok' }}">{{ overlaps }}</b> patients, lesions or duplicates.</p>

<h2>Positives by class: train, of it labelled, test</h2>
<div class="box"><table>
  <thead><tr><th>Class</th>{% for site in sites %}<th>{{ site.name }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for name in classes %}
  {% set row = loop.index0 %}
  <tr><th scope="row">{{ name }}</th>{% for site in sites %}<td>{{ site.positives[row] | join(' · ') }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>

<h2>Classes that occur together</h2>
<div class="box"><table>
  <thead><tr><th></th>{% for name in classes %}<th>{{ name }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for name, counts in together %}
  {% set row = loop.index0 %}
  <tr><th scope="row">{{ name }}</th>{% for count in counts %}<td{% if loop.index0 != row %} class="some"{% endif %}>{{ count }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>

<h2>Images of each site</h2>
{% for site in sites %}
<figure><img src="{{ site.sheet }}" alt="Training images of {{ site.name }}"><figcaption>{{ site.name }}: training images, evenly spaced.</figcaption></figure>
{% endfor %}

{% if regions %}
<h2>Where findings lie</h2>
<figure><img src="{{ regions }}" alt="Images with the regions of their findings"><figcaption>Masks or boxes that were published with the images, outlined.</figcaption></figure>
{% endif %}

<h2>Duplicates</h2>
{% if duplicates %}
<p class="note">{{ num_duplicates }} pairs, exact or nearly so; each stays on one side. The first {{ duplicates | length }}:</p>
<div class="pairs">
{% for one, other, sheet in duplicates %}
<figure><img src="{{ sheet }}" alt="{{ one }} and {{ other }}"><figcaption>{{ one }} and {{ other }}</figcaption></figure>
{% endfor %}
</div>
{% else %}
<p class="note">No image stands twice in the data.</p>
{% endif %}
</main>
</body>
</html>
"""
