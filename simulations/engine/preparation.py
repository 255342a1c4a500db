"""Preparation of a run's images, with a progress bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    with _progress_bar("preparing images", console) as on_image:
        dataset = open_federated_dataset(settings, on_image)
    require_unit(dataset, settings)
    bad = dataset.store.bad
    if bad:
        console.print(
            f"{len(bad)} unreadable images are left out, the first: {bad[0][0]} ({bad[0][1]})",
            markup=False,
        )
    return dataset


def prepare_at_size(dataset: FederatedDataset, side: int, console: Console) -> None:
    """Prepares the same images at another side in pixels, where they are not yet in the store.

    Raises:
        UserError: if the images cannot be read at that side.
    """
    assert dataset.at_size is not None
    with _progress_bar(f"preparing images of {side} px", console) as on_image:
        dataset.at_size(side, on_image)


@contextmanager
def _progress_bar(title: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Shows the progress; yields the function that takes (done, total)."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
