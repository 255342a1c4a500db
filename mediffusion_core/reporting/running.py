"""The figures of a run that has no summary yet, from the lines of its `metrics.jsonl`."""

from collections.abc import Mapping, Sequence
from typing import Any

from mediffusion_core.run_io.run_folder import EVALUATION

NOT_FIGURES = frozenset({"stage", "round", "rounds", "time", "set_aside", "contacts"})

OF_THE_RUN = ("psnr", "privacy", "client_level")
"""Figures that other lines have than those of evaluations; the last one counts."""


def running_figures(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of the last evaluation, and those of the run so far.

    Args:
        history: Lines of `metrics.jsonl`, in their order.

    Returns:
        Figures by the names that `summary.json` has for them.
    """
    figures: dict[str, Any] = {"status": "running", "set_aside": []}
    for line in history:
        stage = line.get("stage")
        if stage == EVALUATION:
            figures |= {name: value for name, value in line.items() if name not in NOT_FIGURES}
        elif stage == "census":
            figures["census"] = line.get("sites", {})
        elif stage == "joint":
            figures["rounds"] = line.get("round")
        figures |= {
            name: line[name] for name in ("psnr", "privacy", "client_level") if name in line
        }
        figures["seconds"] = line.get("time")
        for one in line.get("set_aside", ()):
            figures["set_aside"].append({"stage": stage, "round": line.get("round"), **one})
    return figures
