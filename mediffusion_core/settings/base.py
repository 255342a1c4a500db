"""The base of all settings, and the ranges that many of them share."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class StrictModel(BaseModel):
    """Frozen, and refuses keys that it does not know and numbers that are not finite.

    Folders of runs and exported models keep their settings, so a setting that gets another name, or
    a value of one, is still read by its former name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {}
    """Present names of settings by their former names."""
    FORMER_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Present values by their former values, for each setting that has some."""

    @model_validator(mode="before")
    @classmethod
    def _reads_former_names(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        former = {old: new for old, new in cls.FORMER_NAMES.items() if new not in given}
        renamed = {former.get(name, name): value for name, value in given.items()}
        for name, values in cls.FORMER_VALUES.items():
            if isinstance(renamed.get(name), str):
                renamed[name] = values.get(renamed[name], renamed[name])
        return renamed
