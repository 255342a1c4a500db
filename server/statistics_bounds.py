"""Shapes and ranges of a site's statistics, as `reply_bounds` has the ranges of other replies."""

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.attributes import ATTRIBUTES
from mediffusion_core.evaluation.site_statistics import SUPPRESSED, UNITS, layout, sensitivity
from mediffusion_core.evaluation.subgroups import SUBGROUPS
from mediffusion_core.messaging.omission import Layout
from mediffusion_core.privacy.accounting.plan import refuse_large_delta
from mediffusion_core.settings import Settings
from server.messages import Census, RefusedReplyError, StateDict
from server.reply_bounds import DEVIATIONS, count_of


def layout_of_statistics(settings: Settings, num_classes: int) -> Layout:
    """Names, shapes and types of a site's statistics."""
    shapes = layout(num_classes, settings.data.channels)
    private = settings.privacy.enabled
    dtype = torch.float32 if private else torch.int64
    found = {name: (torch.Size(shape), dtype) for name, shape in shapes.items()}
    return found if private else {**found, "unit": (torch.Size([1]), dtype)}


def refuse_statistics(sums: StateDict, census: Census, settings: Settings) -> None:
    """Refuses counts that no images have, and noised sums that no units have.

    Raises:
        RefusedReplyError: if the cells of a partition exceed the census, or all together are fewer,
            or the unit is none that data can name. In a private run, if a sum is larger than
            `federation.max_images` units and their noise allow, or δ too large for the units.
    """
    if settings.privacy.enabled:
        _refuse_noised(sums, settings)
        return
    images = count_of(census, "images")
    if not 0 <= int(sums["unit"]) < len(UNITS):
        raise RefusedReplyError("sent a unit that no data name")
    _refuse_partition("labelled", sums["labelled"], images)
    _refuse_partition("labels", sums["labels"], images)
    _refuse_partition("histogram", sums["histogram"], images * settings.data.image_size**2)
    for attribute in ATTRIBUTES:
        inside = torch.tensor([name == attribute for name, _ in SUBGROUPS])
        # Images of unknown sex or age are in none of them.
        _refuse_partition(f"subgroups by {attribute}", sums["subgroups"][inside], images, rest=True)


def _refuse_noised(sums: StateDict, settings: Settings) -> None:
    privacy, most = settings.privacy, settings.federation.max_images
    changed = sensitivity(len(sums["labels"]), len(sums["histogram"]))
    largest = most + DEVIATIONS * privacy.release_noise * changed
    for name, values in sums.items():
        if float(values.abs().max()) > largest:
            raise RefusedReplyError(f"sent noised {name} above {largest:g}")
    try:
        refuse_large_delta(privacy, round(float(sums["labelled"].sum())))
    except UserError as error:
        raise RefusedReplyError(str(error)) from None


def _refuse_partition(name: str, counts: Tensor, whole: int, rest: bool = False) -> None:
    """Checks counts (..., K) of cells whose union is all, or with a `rest` a part of it."""
    if int(counts.min()) < SUPPRESSED or int(counts.max()) > whole:
        raise RefusedReplyError(f"sent {name} outside {SUPPRESSED} to {whole}")
    shown = counts != SUPPRESSED
    totals = torch.where(shown, counts, 0).sum(dim=-1)  # (...)
    complete = shown.all(dim=-1) & (not rest)
    if bool((totals > whole).any()) or bool((totals[complete] != whole).any()):
        raise RefusedReplyError(f"sent {name} that do not add up to {whole}")
