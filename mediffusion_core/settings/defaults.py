"""The settings' defaults and former names as plain values, for composition by Hydra."""

from typing import Any

from pydantic_core import to_jsonable_python

from mediffusion_core.settings.base import StrictModel


def defaults(model: type[StrictModel], required: Any) -> dict[str, Any]:
    """Every setting of a model with its default, as plain JSON values.

    Args:
        model: A model of settings; models within it become mappings.
        required: The value of a setting that has no default.
    """
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, StrictModel):
            values[name] = defaults(inner, required)
        elif field.is_required():
            values[name] = required
        else:
            values[name] = to_jsonable_python(field.get_default(call_default_factory=True))
    return values


def former_names(model: type[StrictModel], prefix: str = "") -> dict[str, str]:
    """Dotted former names of a model's settings, with their names today."""
    names = {f"{prefix}{old}": f"{prefix}{new}" for old, new in model.former_names.items()}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, StrictModel):
            names |= former_names(inner, f"{prefix}{name}.")
    return names
