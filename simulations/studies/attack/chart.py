"""The ROC curves of the attacks, both axes logarithmic (arXiv 2112.03570, figure 1)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from mediffusion_core.evaluation.membership_inference import FALSE_POSITIVE_RATE, roc_curve
from mediffusion_core.reporting.style import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    OCHRE,
    PALE_BLUE,
    TERRACOTTA,
    house_type,
    new_figure,
    save_figure,
)
from simulations.studies.attack.candidates import Scored

COLOURS = (BLUE, TERRACOTTA, OCHRE, INK, PALE_BLUE, MUTED)
DASHES = ("-", "--")


def save_roc(attacks: Mapping[str, Scored], ceiling: Mapping[str, Any], path: Path) -> None:
    """Draws a curve for each attack, over all sites, and the chance line.

    Args:
        attacks: By name.
        ceiling: With `largest_tpr`, the bound of ε at 1 % false positives, or empty.
        path: The PNG to write.
    """
    curves = {name: roc_curve(*one.joined()) for name, one in attacks.items()}
    # A rate below one unit cannot be measured, so the axes begin there.
    least = min(1 / len(losses) for one in attacks.values() for losses in one.joined())
    least = min(least, FALSE_POSITIVE_RATE) / 1.5
    with house_type():
        figure = new_figure(6.6, 3.9, layout="constrained")
        axes = figure.subplots()
        axes.plot([least, 1], [least, 1], color=FAINT, lw=1, ls=":", label="guessing")
        axes.axvline(FALSE_POSITIVE_RATE, color=FAINT, lw=0.7)
        for number, (name, (false, true)) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            dashes = DASHES[number // len(COLOURS) % len(DASHES)]
            axes.step(
                *(np.maximum(rate, least) for rate in (false, true)),
                where="post",
                color=colour,
                ls=dashes,
                lw=1.5,
                label=name,
            )
        if ceiling:
            bound = float(ceiling["largest_tpr"])
            label = f"bound of ε = {ceiling['epsilon']:.3g} at 1 %"
            axes.plot([FALSE_POSITIVE_RATE], [bound], "v", color=INK, ms=6, label=label)
        axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1))
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.grid(which="major")
        figure.legend(loc="outside right center")
        save_figure(figure, path)
