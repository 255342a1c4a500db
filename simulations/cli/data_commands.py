"""`fed-mediffusion data`: prepare a data set, check it, and show it."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from configs import compose
from deployment.check_output import report_checks
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data import read_source
from mediffusion_core.data.checks.inspection import CheckResult, inspect
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.data.partitioning.manifest import write_manifests
from mediffusion_core.reporting.data_card import write_data_card
from mediffusion_core.settings import Settings
from simulations.engine.preparation import prepare_images


def prepare_data(config_name: str, overrides: Sequence[str]) -> Path:
    """Builds the store and each site's manifest; returns the manifests' folder."""
    settings, dataset = _opened(config_name, overrides)
    folder = dataset.store.place / "manifests" / _dealt_as(settings, dataset)
    write_manifests(dataset, folder)
    return folder


def check_data(config_name: str, overrides: Sequence[str]) -> int:
    """Prints the results of the checks of a data set; returns 1 if one failed, else 0.

    Raises:
        UserError: for a mistake in the settings.
    """
    settings = compose(config_name, overrides)
    try:
        findings = inspect(_prepared(settings))
    except UserError as error:
        findings = [CheckResult("error", str(error))]
    return report_checks(findings)


def show_data(config_name: str, overrides: Sequence[str], output: Path) -> Path:
    """Writes the data card; returns its path."""
    settings, dataset = _opened(config_name, overrides)
    return write_data_card(dataset, read_source(settings.data, settings.seed), settings, output)


def _opened(config_name: str, overrides: Sequence[str]) -> tuple[Settings, FederatedDataset]:
    settings = compose(config_name, overrides)
    return settings, _prepared(settings)


def _prepared(settings: Settings) -> FederatedDataset:
    return prepare_images(settings, Console(stderr=True, soft_wrap=True))


def _dealt_as(settings: Settings, dataset: FederatedDataset) -> str:
    """Names a partition by all that it depends on beside the store."""
    return fingerprint(
        data=settings.shared()["data"],
        num_sites=settings.federation.num_sites,
        seed=settings.seed,
        secret=dataset.unit_hash.digest() if dataset.unit_hash else None,
    )[:16]
