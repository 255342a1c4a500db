"""The base of all settings, and the ranges that many of them share."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


class StrictModel(BaseModel):
    """Frozen; refuses unknown keys and numbers that are not finite.

    The docstring below a field is its description.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    former_names: ClassVar[Mapping[str, str]] = {}
    """Names of fields in the folders of former runs, with their names today."""
    former_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """By field, values of former runs with their names today."""
    former_fields: ClassVar[Mapping[str, Any]] = {}
    """Fields of former runs that no longer exist, with the one value that code today stands for."""

    @model_validator(mode="before")
    @classmethod
    def _read_former_run(cls, given: Any) -> Any:
        """Renames former fields and values, and drops removed fields that have the one value."""
        if not isinstance(given, Mapping):
            return given
        kept = {
            name: value
            for name, value in given.items()
            if name not in cls.former_fields or cls.former_fields[name] != value
        }
        renamed = {
            name if (new := cls.former_names.get(name, name)) in kept else new: value
            for name, value in kept.items()
        }
        for name, values in cls.former_values.items():
            if isinstance(renamed.get(name), str):
                renamed[name] = values.get(renamed[name], renamed[name])
        return renamed
