"""One thing that was looked at in a data set, and how grave it is."""

from dataclasses import dataclass
from typing import Literal

Grade = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """The result of one check: its grade, and a sentence."""

    grade: Grade
    text: str
