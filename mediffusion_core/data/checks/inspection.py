"""Checks a data set before training: faults, and statistics of each client partition."""

from collections import Counter
from itertools import combinations

import numpy as np

from mediffusion_core.data.checks.check_result import CheckResult, Grade
from mediffusion_core.data.dataset import SPLITS
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.data.partitioning.splits import ClientPartition

FEW = 10
"""Positives below which a class's AUC has an interval as wide as its range."""

TWO_LEVELS = 0.9
"""Share of pixels; the edges of a mask have other values once it is resized."""

BLOCK = 1024
"""Images that are looked at together."""

__all__ = ["CheckResult", "Grade", "conflicts", "inspect", "overlaps"]


def inspect(dataset: FederatedDataset) -> list[CheckResult]:
    """Everything that is looked at before training, errors first."""
    found = [
        _overlap(dataset),
        *_conflicts(dataset),
        _classes(dataset),
        *_bad(dataset),
        *dataset.notes,
        *_splits(dataset),
        *_two_levels(dataset),
        *_duplicates(dataset),
        *_labels(dataset),
        *(result for client in dataset.clients for result in _site(dataset, client)),
    ]
    grades: tuple[Grade, ...] = ("error", "warning", "ok")
    return sorted(found, key=lambda result: grades.index(result.grade))


def overlaps(dataset: FederatedDataset) -> int:
    """Patients, lesions or duplicates that stand in two splits or at two sites; 0 is right."""
    store = dataset.store
    sides = [getattr(client, split) for client in dataset.clients for split in SPLITS]
    patients = [{store.groups[row] for row in rows.tolist()} for rows in sides]
    units = [set(store.units[rows].tolist()) for rows in sides]
    return sum(
        len(one & other) for names in (patients, units) for one, other in combinations(names, 2)
    )


def conflicts(dataset: FederatedDataset) -> list[tuple[int, int]]:
    """Pairs of duplicates whose known labels contradict each other."""
    labels = dataset.store.labels
    return [
        (int(one), int(other))
        for one, other in dataset.store.duplicates
        if bool((np.abs(labels[one] - labels[other]) > 0).any())
    ]


def _overlap(dataset: FederatedDataset) -> CheckResult:
    count = overlaps(dataset)
    text = f"{count} patients, lesions or duplicates stand in two splits or at two sites"
    return CheckResult("error" if count else "ok", text)


def _conflicts(dataset: FederatedDataset) -> list[CheckResult]:
    pairs = conflicts(dataset)
    if not pairs:
        return []
    ids = dataset.store.image_ids
    one, other = pairs[0]
    text = f"{len(pairs)} duplicates with contradicting labels, the first: {ids[one]}, {ids[other]}"
    return [CheckResult("warning", text)]


def _classes(dataset: FederatedDataset) -> CheckResult:
    store = dataset.store
    counts = (np.asarray(store.labels) == 1).sum(axis=0).tolist()
    listed = ", ".join(f"{name} {count}" for name, count in zip(store.classes, counts, strict=True))
    kind = "findings, several an image" if store.multi_label else "classes, one an image"
    return CheckResult("ok", f"{len(store.classes)} {kind}: {listed}")


def _splits(dataset: FederatedDataset) -> list[CheckResult]:
    if dataset.store.splits is None:
        return []
    counts = Counter(dataset.store.splits)
    listed = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    return [CheckResult("ok", f"splits of the data set, for data.splits=official: {listed}")]


def _bad(dataset: FederatedDataset) -> list[CheckResult]:
    bad = dataset.store.bad
    total = len(dataset.store.image_ids) + len(bad)
    if not bad:
        return [CheckResult("ok", f"all {total} images can be read")]
    name, reason = bad[0]
    text = f"{len(bad)} of {total} images can't be read, the first is {name} ({reason})"
    return [CheckResult("warning", text)]


def _two_levels(dataset: FederatedDataset) -> list[CheckResult]:
    """A warning of images that are nearly all of their darkest or brightest value, as masks are."""
    store = dataset.store
    flat = []
    for start in range(0, len(store.images), BLOCK):
        block = store.images[start : start + BLOCK]
        values = block.reshape(len(block), -1)
        low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
        share = ((values == low) | (values == high)).mean(axis=1)
        flat += (start + np.flatnonzero(share > TWO_LEVELS)).tolist()
    if not flat:
        return []
    text = f"{len(flat)} images have two grey levels or one, as masks and blank scans have, "
    return [CheckResult("warning", f"{text}the first is {store.image_ids[flat[0]]}")]


def _duplicates(dataset: FederatedDataset) -> list[CheckResult]:
    store = dataset.store
    if not len(store.duplicates):
        return [CheckResult("ok", "no image stands twice in the data")]
    one, other = store.duplicates[0]
    again = {int(b) for _, b in store.duplicates}  # one image may repeat several
    across = {int(b) for a, b in store.duplicates if store.groups[a] != store.groups[b]}
    kept = "kept on one side"
    if dataset.unit_hash:
        kept = "with privacy each patient is dealt alone, so that they may stand on two sides"
    text = (
        f"{len(again)} images stand twice, {len(across)} under another patient or lesion, "
        f"the first: {store.image_ids[one]}, {store.image_ids[other]}; {kept}"
    )
    return [CheckResult("warning" if across else "ok", text)]


def _labels(dataset: FederatedDataset) -> list[CheckResult]:
    store = dataset.store
    found = []
    for name, column in zip(store.classes, np.asarray(store.labels).T, strict=True):
        for value, kind in ((1, "positive"), (0, "negative")):
            if not (column == value).any():
                found.append(CheckResult("warning", f"class {name} has no {kind} image"))
    unknown = ~np.any([client.known for client in dataset.clients], axis=0)
    for name, nowhere in zip(store.classes, unknown.tolist(), strict=True):
        if nowhere:
            found.append(CheckResult("warning", f"class {name} is labelled at no site"))
    missing = int(np.isnan(store.labels).all(axis=1).sum())
    if missing == len(store.labels):
        found.append(CheckResult("error", "no image has a label"))
    elif missing:
        found.append(CheckResult("ok", f"{missing} of {len(store.labels)} images have no label"))
    return found


def _site(dataset: FederatedDataset, client: ClientPartition) -> list[CheckResult]:
    text = (
        f"site {client.site}: {len(client.train)} to train on, "
        f"{int(client.labelled.sum())} of them labelled, "
        f"{len(client.validation)} to validate, {len(client.test)} to test"
    )
    found = [CheckResult("ok", text)]
    positives = (dataset.labels(client, "train") == 1).sum(axis=0)
    few = [
        f"{name} {count}"
        for name, count, known in zip(
            dataset.store.classes, positives.tolist(), client.known, strict=True
        )
        if known and count < FEW
    ]
    if client.validation_labelled and not client.labelled.any():
        why = "is small enough for so few labels"
        if dataset.unit_hash:
            why = "was drawn to keep its labels"
        text = f"site {client.site}: no patient or lesion {why}"
        found.append(CheckResult("warning", text))
    if client.labelled.any() and few:
        text = f"site {client.site}: fewer than {FEW} labelled positives of {', '.join(few)}"
        found.append(CheckResult("warning", text))
    return found
