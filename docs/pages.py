"""Pages of the documentation that are made of the code while mkdocs builds, and its formulas.

mkdocs loads this file as hooks. Settings come from the pydantic models and the comments of
`configs/`, commands from the Typer app, API pages from the packages of the core. Formulas become
MathML, which browsers show without a script.
"""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import latex2mathml.converter
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from configs.compose import FOLDER, compose, groups
from mediffusion_core.messaging.failure_codes import FAILURES
from mediffusion_core.settings import Settings
from server.outcomes import MEANINGS
from simulations.cli.main import app

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
CORE = "mediffusion_core"
OPTION = re.compile(r"( *)([A-Za-z0-9_-]+):[^#]*(?:#\s*(.*))?")
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL)
WORKER, OWN_WORKER = "https://unpkg.com/iframe-worker/shim", "assets/iframe-worker/shim.js"
"""Where the theme takes a worker that runs without a server, and our copy."""
Schema = dict[str, Any]
"""JSON schema, and JSON values."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills the sections of the navigation that list files."""
    records = [f"decisions/{path.name}" for path in sorted((DOCS / "decisions").glob("0*.md"))]
    listed = {"API": sorted(api_pages()), "Decisions": ["decisions/index.md", *records]}
    _fill(config.nav or [], listed)
    return config


def _fill(nav: list[Any], listed: dict[str, list[str]]) -> None:
    for entry in nav:
        for title, within in entry.items() if isinstance(entry, dict) else ():
            if title in listed:
                entry[title] = listed[title]
            elif isinstance(within, list):
                _fill(within, listed)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    pages = {
        "reference/settings.md": settings_page(),
        "reference/commands.md": commands_page(),
        "reference/error-codes.md": error_codes_page(),
    }
    for path, content in {**pages, **api_pages()}.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Turns the formulas of a page into MathML."""

    def converted(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return latex2mathml.converter.convert(html.unescape(found[2]).strip(), display=display)

    return FORMULA.sub(converted, content)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Takes the worker of the offline search from the site, not from the network."""
    return output.replace(WORKER, get_relative_url(OWN_WORKER, page.url))


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """Does the same for pages without a source."""
    return output_content.replace(WORKER, OWN_WORKER)


# Settings


def settings_page() -> str:
    """Every setting with its type, its default and what the files of `configs/` say of it."""
    schema = Settings.model_json_schema()
    defaults = compose("config", []).model_dump(mode="json")
    parts = [
        "# Settings",
        "This page is generated from the code. `fed-mediffusion settings` prints the values of a "
        "run. The defaults are those of `configs/config.yaml`.",
        "## Groups",
        "`GROUP=CHOICE` takes a file of `configs/GROUP/`. Its comments say what it is for.",
        _table(
            ["group", "choices"], [[f"`{name}`", _listed(ones)] for name, ones in groups().items()]
        ),
        "## Top level",
        *_section(schema, schema["$defs"], defaults, _comments(), ""),
    ]
    return "\n\n".join(parts) + "\n"


def _section(
    model: Schema, models: Schema, defaults: Schema, comments: dict[str, str], prefix: str
) -> Iterator[str]:
    """A heading, the model's docstring and a table; then the same of the models within."""
    if prefix:
        yield f"## `{prefix.rstrip('.')}`"
    yield model.get("description", "")
    rows, inner = [], []
    for name, field in model["properties"].items():
        key = f"{prefix}{name}"
        nested = models.get(field.get("$ref", "").rpartition("/")[2])
        if nested:
            inner.append((name, nested))
            continue
        said = field.get("description") or comments.get(key, "")
        value = f"`{_shown(defaults.get(name))}`"
        rows.append([f"`{key}`", _type(field), value, _cell(said)])
    if rows:
        yield _table(["setting", "type", "default", "meaning"], rows)
    for name, nested in inner:
        yield from _section(nested, models, defaults.get(name) or {}, comments, f"{prefix}{name}.")


def _listed(names: list[Any]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _type(field: Schema) -> str:
    """The allowed values of a setting, in words."""
    if "anyOf" in field:
        return " or ".join(_type(choice) for choice in field["anyOf"])
    if choices := field.get("enum"):
        return _listed(choices)
    limits = [f"{sign} {field[name]:.12g}" for name, sign in LIMITS.items() if name in field]
    kind = "path" if field.get("format") == "path" else field.get("type", "any")
    if kind == "array":
        items = field.get("items") or field["prefixItems"][-1]
        return f"list of {_type(items)}"
    if kind == "object":
        return f"mapping to {_type(field['additionalProperties'])}"
    return " ".join([kind, ", ".join(limits)]).strip()


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False).replace('"', "")


def _comments() -> dict[str, str]:
    """Comments of the configuration files by setting, the default choices' first."""
    found: dict[str, str] = {}
    files = [FOLDER / "config.yaml", *sorted(FOLDER.glob("*/*.yaml"), key=_default_first)]
    for file in files:
        group = "" if file.parent == FOLDER else f"{file.parent.name}."
        if group == "experiment.":
            continue
        keys: list[tuple[int, str]] = []
        for line in file.read_text(encoding="utf-8").splitlines():
            if not (option := OPTION.fullmatch(line)):
                continue
            indent = len(option[1])
            keys = [one for one in keys if one[0] < indent] + [(indent, option[2])]
            if option[3]:
                found.setdefault(group + ".".join(key for _, key in keys), option[3])
    return found


def _default_first(file: Path) -> tuple[bool, str]:
    return file.stem not in ("default", "off", "tiny", "phantom", "base"), str(file)


# Commands


def commands_page() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    root = typer.main.get_command(app)
    parts = [
        "# Commands",
        "This page is generated from the code; `fed-mediffusion COMMAND --help` says the same.",
        *_command(root, "fed-mediffusion"),
    ]
    return "\n\n".join(parts) + "\n"


def _command(command: Any, name: str) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    if hasattr(command, "list_commands"):
        for inner in command.list_commands(context):
            yield from _command(command.get_command(context, inner), f"{name} {inner}")
        return
    yield f"## `{name}`"
    yield _paragraph(command.help or "")
    yield f"```text\n{name} {' '.join(command.collect_usage_pieces(context))}\n```"
    rows = []
    for parameter in command.params:
        if "--help" in parameter.opts:
            continue
        option = parameter.param_type_name == "option"
        names = ", ".join(parameter.opts) if option else parameter.make_metavar(context)
        default = "" if parameter.default in (None, ()) else f"`{_shown(str(parameter.default))}`"
        rows.append([f"`{names}`", default, _cell(_help(command, parameter.name))])
    if rows:
        yield _table(["argument or option", "default", "meaning"], rows)


def _help(command: Any, name: str) -> str:
    # Of the function, since Typer below 0.21 loses that of arguments under Click 8.5.
    hint = get_type_hints(command.callback, include_extras=True)[name]
    return next((said.help for said in get_args(hint) if hasattr(said, "help")), None) or ""


# Error codes


def error_codes_page() -> str:
    """The failure codes of sites, and the outcomes at the server."""
    failures = [[f"`{code}`", one.meaning, one.remedy] for code, one in sorted(FAILURES.items())]
    outcomes = [[f"`{code.value}`", meaning] for code, meaning in MEANINGS.items()]
    parts = [
        "# Error codes",
        "This page is generated from the code.",
        "## Codes of a site",
        "A site answers with a code and an id; the text of the error stays in its own log, "
        "`site.log` in the site's folder of the run, or the log of its container before that "
        "folder exists. In a run with differential privacy, and at a site that takes part in no "
        "other, `failed` leaves in the place of every other code. Its id is the same for the same "
        "message; the site's logs have the other code under it.",
        _table(["code", "meaning", "what to do"], failures),
        "## Outcomes at the server",
        "`set_aside` in `metrics.jsonl` and the audit log say what became of a message to a site.",
        _table(["outcome", "meaning"], outcomes),
        "## Exit status of commands",
        "0 for success; 1 where a check, a ledger or an audit log failed, or a run did not "
        "complete; 2 for a mistake, with one line that names it; 130 for a run that was stopped.",
    ]
    return "\n\n".join(parts) + "\n"


# API


def api_pages() -> dict[str, str]:
    """A page for each package of the core, and one that lists them."""
    pages: dict[str, str] = {}
    lines = ["# API", "Generated from the docstrings of `mediffusion_core`.", ""]
    for package in sorted(path.parent for path in (ROOT / CORE).glob("*/__init__.py")):
        modules = [path for path in sorted(package.rglob("*.py")) if path.name != "__init__.py"]
        names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules]
        blocks = "\n\n".join(f"::: {name}" for name in names)
        doc = _docstring(package / "__init__.py")
        pages[f"reference/api/{package.name}.md"] = f"# `{package.name}`\n\n{doc}\n\n{blocks}\n"
        lines.append(f"- [`{package.name}`]({package.name}.md): {doc.splitlines()[0]}")
    pages["reference/api/index.md"] = "\n".join(lines) + "\n"
    return pages


def _docstring(file: Path) -> str:
    found = re.match(r'\s*"""(.*?)"""', file.read_text(encoding="utf-8"), re.DOTALL)
    return _paragraph(found[1]) if found else ""


def _paragraph(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Escapes `|`, except in code, where the backslash would show."""
    return re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or r"\|", " ".join(text.split()))
