"""The result of one check of a data set or a site."""

from dataclasses import dataclass
from typing import Literal

Grade = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check: its grade, and a sentence."""

    grade: Grade
    text: str
