"""One thing that was looked at in a data set, and how grave it is."""

from dataclasses import dataclass
from typing import Literal

Grade = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: how grave, and what was seen."""

    grade: Grade
    text: str
