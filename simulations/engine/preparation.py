"""Preparation of a run's images, with a progress bar."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
    require_unit,
)
from mediffusion_core.settings import Settings


def prepare_images(settings: Settings, console: Console) -> FederatedDataset:
    """Prepares the images that are not yet in the store, and opens the images of all sites.

    Args:
        settings: Of the run.
        console: Shows the progress, and a line on unreadable images.

    Raises:
        UserError: if the images cannot be read or partitioned, or do not name the privacy unit.
    """
    columns = (
        TextColumn("preparing images"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        dataset = open_federated_dataset(
            settings, lambda done, total: progress.update(task, completed=done, total=total)
        )
    require_unit(dataset, settings)
    bad = dataset.store.bad
    if bad:
        console.print(
            f"{len(bad)} unreadable images are left out, the first: {bad[0][0]} ({bad[0][1]})",
            markup=False,
        )
    return dataset
