"""The headline figures of a run: one list for report, model card and terminal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from mediffusion_core.reporting.formats import NOT_MEASURED, count, interval, number, percent


@dataclass(frozen=True)
class Figure:
    """A figure of `summary.json`, its title and its text.

    Attributes:
        key: Dotted key in the summary.
        title: Name of the figure; of a figure beside another one the word before it.
        text: Writes the value; "not measured" or nothing where there is none.
        beside: Figures that explain this one.
    """

    key: str
    title: str
    text: Callable[[Any], str]
    beside: tuple["Figure", ...] = ()


class Row(NamedTuple):
    """A figure as a user reads it."""

    name: str
    value: str
    note: str


_one, _two, _four = (partial(number, digits=digits) for digits in (1, 2, 4))

FIGURES = (
    Figure(
        "auc_macro",
        "AUC, test",
        number,
        (Figure("auc_macro_interval", "95 % interval", interval),),
    ),
    Figure(
        "auc_pooled",
        "AUC, sites pooled",
        number,
        (Figure("auc_pooled_interval", "95 % interval", interval),),
    ),
    Figure(
        "calibration.ece",
        "Calibration error, test",
        number,
        (
            Figure("calibration.ece_uncalibrated", "uncalibrated", number),
            Figure("calibration.temperature", "temperature", _two),
        ),
    ),
    Figure(
        "calibration.brier",
        "Brier score, test",
        number,
        (Figure("calibration.brier_uncalibrated", "uncalibrated", number),),
    ),
    Figure(
        "fid",
        "FID",
        _one,
        (Figure("fid_floor", "floor", _one), Figure("fid_untrained", "untrained", _one)),
    ),
    Figure("kid", "KID", _four, (Figure("kid_std", "±", _four),)),
    Figure("psnr", "Reconstruction PSNR", partial(number, digits=1, unit=" dB")),
    Figure(
        "counterfactual.flip_rate",
        "Counterfactuals that flip",
        percent,
        (Figure("counterfactual.eligible", "of", count),),
    ),
    Figure("counterfactual.off_target", "Change in other classes", _four),
)


def headline(summary: Mapping[str, Any]) -> list[Row]:
    """The figures of a run's summary, in the order of `FIGURES`.

    A figure that is absent or null reads "not measured", and nothing stands beside it.
    """
    rows = []
    for figure in FIGURES:
        value = figure.text(_found(summary, figure.key))
        texts = [(one.title, one.text(_found(summary, one.key))) for one in figure.beside]
        known = [f"{title} {text}" for title, text in texts if text not in ("", NOT_MEASURED)]
        rows.append(Row(figure.title, value, "" if value == NOT_MEASURED else ", ".join(known)))
    return rows


def _found(summary: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, None where a part of it is absent."""
    value: Any = summary
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
