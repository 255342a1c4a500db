"""The figures of a run that has no summary yet, from the lines of its `metrics.jsonl`."""

from collections.abc import Mapping, Sequence
from typing import Any

from mediffusion_core.run_io.run_folder import EVALUATION

History = Sequence[Mapping[str, Any]]

NOT_FIGURES = frozenset({"stage", "round", "rounds", "time", "set_aside", "contacts"})
OF_THE_RUN = ("psnr", "privacy", "client_level")
"""Figures that other lines have than those of evaluations; the last one counts."""


def evaluation_figures(line: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation's line."""
    return {name: value for name, value in line.items() if name not in NOT_FIGURES}


def set_aside(history: History) -> list[dict[str, Any]]:
    """Each reply that did not count: stage, round, site, kind of message and reason."""
    return [
        {"stage": line.get("stage"), "round": line.get("round"), **one}
        for line in history
        for one in line.get("set_aside", ())
    ]


def running_figures(history: History) -> dict[str, Any]:
    """The figures of the last evaluation, and those of the run so far.

    Args:
        history: Lines of `metrics.jsonl`, in their order.

    Returns:
        Figures by the names that `summary.json` has for them.
    """
    figures: dict[str, Any] = {"status": "running", "set_aside": set_aside(history)}
    for line in history:
        stage = line.get("stage")
        if stage == EVALUATION:
            figures |= evaluation_figures(line)
        elif stage == "census":
            figures["census"] = line.get("sites", {})
        elif stage == "joint":
            figures["rounds"] = line.get("round")
        figures |= {name: line[name] for name in OF_THE_RUN if name in line}
        figures["seconds"] = line.get("time")
    return figures
