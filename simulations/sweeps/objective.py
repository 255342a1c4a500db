"""The figure that a sweep sorts by: of the sites' validation patients, never of the test set."""

from collections.abc import Mapping, Sequence
from typing import Any

from mediffusion_core.common.errors import UserError
from mediffusion_core.reporting.formats import inside, measured
from mediffusion_core.reporting.headline import FIGURES
from mediffusion_core.settings import Settings

POOLED = "auc_pooled"
PER_CLASS = "auc_pooled_per_class"
TEST = {figure.key.partition(".")[0] for figure in FIGURES} - {POOLED}
"""Names in `summary.json` of figures of the public test set."""


def check_objective(name: str, classes: Sequence[str] | None = None) -> None:
    """Refuses any figure but those of the sites' validation patients.

    Args:
        name: Dotted name of a figure in `summary.json`.
        classes: Names of the classes; None as long as they are not known.

    Raises:
        UserError: with the reason, if it is another figure, or there is no such class.
    """
    figure, dot, finding = name.partition(".")
    if figure in TEST or (figure.startswith("auc_") and not figure.startswith(POOLED)):
        raise UserError(
            f"--objective {name} is a figure of the test set: settings that are chosen by it make "
            f"the reported test figures too good; allowed: {POOLED}, {PER_CLASS}.CLASS"
        )
    if name != POOLED and not (figure == PER_CLASS and dot):
        raise UserError(f"--objective {name}: allowed are {POOLED} and {PER_CLASS}.CLASS")
    if finding and classes is not None and finding not in classes:
        raise UserError(f"--objective {name}: no such class; allowed: {', '.join(classes)}")


def has_objective(settings: Settings) -> bool:
    """Whether a run with these settings has figures of the sites' validation patients."""
    # The AUC of a classifier that is not trained says nothing.
    return settings.sites_validate and bool(settings.training.joint.classification_weight)


def objective_of(summary: Mapping[str, Any], name: str) -> float | None:
    """The figure of a run's summary; None if it was not measured."""
    figure, _, finding = name.partition(".")
    value = inside(summary, figure).get(finding) if finding else summary.get(figure)
    return measured(value)
