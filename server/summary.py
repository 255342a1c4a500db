"""The losses of a round, and the figures of a run's summary."""

from collections.abc import Mapping, Sequence
from typing import Any

from mediffusion_core.messaging.protocol import AUTOENCODER, HEAD, UNET
from mediffusion_core.privacy.accounting.accountant import epsilon
from mediffusion_core.privacy.accounting.plan import Plan, validation_charges
from mediffusion_core.reporting.running import History, evaluation_figures, set_aside
from mediffusion_core.run_io.run_folder import EVALUATION
from mediffusion_core.settings import Settings
from mediffusion_core.settings.allowed_metrics import LOSSES
from server.messages import Reply
from server.state import RunState
from server.strategy.aggregation import mean_metric

Census = Mapping[str, Mapping[str, Any]]


def losses(replies: Sequence[Reply]) -> dict[str, Any]:
    """Mean losses of a round, and the metrics and traffic of each site."""
    metrics = [reply.metrics for reply in replies]
    means = {
        name: mean_metric(
            metrics, name, "labelled_seen" if name.startswith("classification") else "images_seen"
        )
        for name in LOSSES
        if any(name in site for site in metrics)
    }
    return {
        **means,
        "sites": {reply.site: reply.metrics for reply in replies},
        "traffic": {reply.site: reply.traffic for reply in replies},
    }


def summary(state: RunState, history: History, census: Census) -> dict[str, Any]:
    """The figures of a run that is done: those of the selected model, and of the run.

    Args:
        state: After its last round.
        history: The lines of its `metrics.jsonl`.
        census: Counts by site.
    """
    evaluated = {line["round"]: line for line in history if line["stage"] == EVALUATION}
    assert state.selection is not None
    selected = evaluated[state.selection.kept]
    return {
        **evaluation_figures(selected),
        "psnr": [line["psnr"] for line in history if "psnr" in line][-1],
        "fid_untrained": evaluated[0]["fid"],
        "kid_untrained": evaluated[0]["kid"],
        "selected_round": state.selection.kept,
        "rounds": state.joint_rounds,
        "autoencoder_rounds": state.autoencoder_rounds,
        "census": census,
        "set_aside": set_aside(history),
        "parameters": {
            name: sum(tensor.numel() for tensor in state.weights[name].values())
            for name in (AUTOENCODER, UNET, HEAD)
        },
    }


class Promises:
    """ε of a private run, by the sites' noised counts; each count is planned once."""

    def __init__(self, settings: Settings) -> None:
        """Takes the settings of the run."""
        self._settings = settings
        self._by_units: dict[int, dict[str, float]] = {}

    def of(self, census: Census) -> dict[str, Any]:
        """ε of the run for the training units of each site.

        With `privacy.validation_noise` also for validation units, which are in no training step.

        It is the cost of the planned rounds. Repeated rounds, and earlier runs on the same
        patients, stand in the site's ledger alone.
        """
        privacy = self._settings.privacy
        sites = {site: self._of_site(counts["train"]) for site, counts in census.items()}
        promises = {"unit": privacy.unit, "target_delta": privacy.target_delta, "sites": sites}
        if charges := validation_charges(self._settings):
            promises["validation_epsilon"] = epsilon(charges, privacy.target_delta)
        return promises

    def _of_site(self, units: int) -> dict[str, float]:
        if units not in self._by_units:
            plan = Plan.of(self._settings, units)
            self._by_units[units] = {
                "epsilon": epsilon(plan.charges(), self._settings.privacy.target_delta),
                "noise_multiplier": plan.noise_multiplier,
                "sample_rate": plan.sample_rate,
            }
        return self._by_units[units]
