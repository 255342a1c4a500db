"""The defaults of the settings as plain values; configuration files hold only what differs."""

from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python


def defaults(model: type[BaseModel], required: Any) -> dict[str, Any]:
    """Every setting of a model with its default, as plain JSON values.

    Args:
        model: A model of settings; models within it become mappings.
        required: The value of a setting that has no default.
    """
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            values[name] = defaults(inner, required)
        elif field.is_required():
            values[name] = required
        else:
            values[name] = to_jsonable_python(field.get_default(call_default_factory=True))
    return values
