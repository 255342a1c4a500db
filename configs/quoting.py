"""Quotes the value that a user gives a setting, for the grammar of Hydra's overrides."""

import json
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from mediffusion_core.common.errors import UserError
from mediffusion_core.settings import Settings

_PLAIN = re.compile(r"[\w .()/-]*[\w.()/-]")
"""A text that needs no quotation marks in an override."""
Kind = Literal["text", "path", "texts", "either"]
"""A setting that is text, a path, a list of texts, or text or such a list."""


def quoted(text: str | Path) -> str:
    """A text or path as the value of a Hydra override, whatever characters it holds."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"),
                     str(text))  # fmt: skip
    return f"'{escaped}'"


def as_overrides(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Overrides `a.b=value` of nested settings.

    Args:
        values: Plain JSON values, and mappings of them.
        prefix: Begins every key.
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from as_overrides(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={_written(value)}"


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else quoted(value)
    if isinstance(value, list):
        return f"[{','.join(_written(item) for item in value)}]"
    return json.dumps(value)


def as_meant(key: str, value: str) -> str:
    """A value with the quotation marks that Hydra's grammar asks for and users leave out.

    Only values of settings that are text, paths or lists of texts change; `null` and quoted
    values stay as they are. `~` at the start of a path is the user's home.

    Args:
        key: dotted name of a setting.
        value: the given value.

    Raises:
        UserError: an empty path, which a shell's variable that is not set leaves.
    """
    kind = _kinds().get(key)
    if kind == "path" and value in ("", "''", '""'):
        raise UserError(f"{key}={value}: no path is given; {key}=. is the present folder")
    if kind is None or value == "null" or _is_quoted(value):
        return value
    is_list = value.startswith("[") and value.endswith("]")
    if kind == "path":
        return quoted(os.path.expanduser(value))
    if kind == "text" or (kind == "either" and not is_list):
        return quoted(value)
    items = _items(value[1:-1] if is_list else value)
    return f"[{','.join(item if _is_quoted(item) else quoted(item) for item in items)}]"


def is_text(key: str) -> bool:
    """Whether a setting, by its dotted name, is text, a path or a list of texts."""
    return key in _kinds()


def rejoined(overrides: Sequence[str]) -> list[str]:
    """The overrides with lists in one piece that a shell has split at their blanks."""
    found: list[str] = []
    for override in overrides:
        is_open = found and re.match(r"[^=]*=\[[^\]]*$", found[-1])
        if is_open and "=" not in override:
            found[-1] += f" {override}"
        else:
            found.append(override)
    return found


def _is_quoted(value: str) -> bool:
    return bool(re.fullmatch(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", value))


def _items(text: str) -> list[str]:
    """The parts between commas that stand in no quotation marks, without blanks around them."""
    parts = re.findall(r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,])+""", text)
    return [part.strip() for part in parts if part.strip()]


@cache
def _kinds() -> dict[str, Kind]:
    """The settings that hold text, by their dotted names."""
    return dict(_of_model(Settings, ""))


def _of_model(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Kind]]:
    for name, field in model.model_fields.items():
        parts = list(_parts(field.annotation))
        for part in parts:
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _of_model(part, f"{prefix}{name}.")
        one = str in parts
        many = any(get_origin(part) in (tuple, frozenset) and str in get_args(part)
                   for part in parts)  # fmt: skip
        if Path in parts:
            yield f"{prefix}{name}", "path"
        elif one or many:
            yield f"{prefix}{name}", "either" if one and many else "text" if one else "texts"


def _parts(annotation: Any) -> Iterator[Any]:
    """The types of a union, without what annotates them."""
    if get_origin(annotation) is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation
