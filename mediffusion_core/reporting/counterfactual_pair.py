"""One image and its counterfactual, as the first screen of the report shows them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from mediffusion_core.common.errors import UserError
from mediffusion_core.settings.base import StrictModel

PAIR = "counterfactual.json"
"""The file's name, beside the pictures of a run or of one evaluation."""

Png = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]
Figure = float | None


class ClassChange(StrictModel):
    """The model's probability of one class, before and after."""

    name: str
    before: Figure
    after: Figure
    named: bool
    """Whether the target names the class."""

    @property
    def change(self) -> float:
        """|after - before|; 0 where one of them is not finite."""
        if self.before is None or self.after is None:
            return 0.0
        return abs(self.after - self.before)


class CounterfactualPair(StrictModel):
    """An image and its counterfactual with the model's probabilities."""

    target: str
    """The target as text: `remove Effusion`, `add Nodule`, `NV → MEL`."""
    flipped: bool | None
    """Whether the counterfactual reached the target; None where the image was already there."""
    classes: tuple[ClassChange, ...]
    l1: Figure
    """Mean |counterfactual - image| over pixels and channels, images in [0, 1]."""
    image: Png
    """PNG in base64."""
    counterfactual: Png
    """PNG in base64."""

    @property
    def named(self) -> list[ClassChange]:
        """The classes that the target names."""
        return [one for one in self.classes if one.named]

    @property
    def most_changed_other(self) -> ClassChange | None:
        """The class outside the target whose probability changed most."""
        others = [one for one in self.classes if not one.named]
        return max(others, key=lambda one: one.change, default=None)


def change(target: str) -> str:
    """A target in words: `without Effusion`, `with Nodule`, `as MEL instead of NV`."""
    for verb, word in (("remove ", "without"), ("add ", "with")):
        if target.startswith(verb):
            return f"{word} {target.removeprefix(verb)}"
    source, arrow, wanted = target.partition(" → ")
    return f"as {wanted} instead of {source}" if arrow else f"changed to {target}"


def read_pair(pictures: Path) -> CounterfactualPair | None:
    """The pair beside a run's pictures; None where there is none.

    Raises:
        UserError: if its file is not one that a run writes.
    """
    path = pictures / PAIR
    if not path.is_file():
        return None
    try:
        return CounterfactualPair.model_validate_json(path.read_bytes())
    except ValidationError:
        raise UserError(f"{path} is not a counterfactual; restore the run's own file") from None
