"""Rendering and style of the project's HTML pages."""

from jinja2 import Environment, StrictUndefined

_DARK = """--ink: #e6eaee; --muted: #9aa7b3; --faint: #5a6773; --rule: #2b343d; --paper: #1a2128;
    --ground: #12171c; --blue: #8db8da; --band: #3d5f7c; --good: #8db8da; --warn: #e2936c;
    --bad: #ff8095; --chart-filter: invert(1) hue-rotate(180deg); --chart-blend: screen;
    color-scheme: dark;"""
STYLE = (
    f""":root {{
  --ink: #1f2933; --muted: #5f6b76; --faint: #b3bcc4; --rule: #e3e7eb; --paper: #ffffff;
  --ground: #f5f7f9; --blue: #2f6690; --band: #a9c6dd; --good: #2f6690; --warn: #b4532a;
  --bad: #a3122a; --chart-filter: none; --chart-blend: normal; color-scheme: light;
}}
@media screen and (prefers-color-scheme: dark) {{
  :root:not([data-theme="light"]) {{
    {_DARK}
  }}
}}
@media screen {{
  :root[data-theme="dark"] {{
    {_DARK}
  }}
}}
"""
    """* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 44px 0 12px; }
.eyebrow { color: var(--muted); margin: 0 0 4px; font-size: .9rem; }
.facts { display: flex; flex-wrap: wrap; gap: 8px 28px; margin: 18px 0 0; padding: 0; }
.facts dt { color: var(--muted); font-size: .8rem; }
.facts dd { margin: 0; font-size: .95rem; overflow-wrap: anywhere; }
.box, figure { background: var(--paper); border: 1px solid var(--rule); border-radius: 10px; }
.box { overflow-x: auto; padding: 4px 18px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: 8px 16px 8px 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .left { text-align: left; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; font-size: .82rem; }
tbody tr { border-top: 1px solid var(--rule); }
tbody:first-child tr:first-child { border-top: 0; }
tbody th { font-weight: 500; }
"""
)
"""Colours, type, facts and tables, for light and dark screens; a page adds what it alone has.

A page that lets its reader choose puts `data-theme` on its root: light, dark, or the system's.
"""


def render_page(template: str, **values: object) -> str:
    """A page from a Jinja template that puts `{{ style | safe }}` into its head.

    Every value is escaped, and one that the template misses is an error.
    """
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.from_string(template).render(style=STYLE, **values)
