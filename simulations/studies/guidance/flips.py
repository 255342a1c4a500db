"""How often counterfactuals flip the model and an independent classifier, in the run's report."""

from pathlib import Path

from mediffusion_core.reporting.report import write_report
from mediffusion_core.run_io.run_folder import write_json
from simulations.studies.promises import SUMMARY, read_summary


def record_flips(run: Path, flipped: float, independent_flipped: float) -> None:
    """Adds the shares to the summary of a run that has ended, and makes its report anew.

    The report warns of counterfactuals that flip the model alone.
    """
    if (run / SUMMARY).is_file():
        flips = {"flipped": flipped, "independent_flipped": independent_flipped}
        write_json(run / SUMMARY, {**read_summary(run), "guidance": flips})
        write_report(run)
