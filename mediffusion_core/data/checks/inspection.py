"""Checks a data set before training: faults, and statistics of each client partition."""

from collections import Counter
from itertools import combinations

import numpy as np

from mediffusion_core.data.checks.finding import Finding, Grade
from mediffusion_core.data.dataset import SPLITS
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.data.partitioning.splits import ClientPartition

FEW = 10
"""Positives below which a class's AUC has an interval as wide as its range."""

TWO_LEVELS = 0.9
"""Share of pixels; the edges of a mask have other values once it is resized."""

BLOCK = 1024
"""Images that are looked at together."""

__all__ = ["Finding", "Grade", "conflicts", "inspect", "overlaps"]


def inspect(dataset: FederatedDataset) -> list[Finding]:
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
        *(finding for client in dataset.clients for finding in _site(dataset, client)),
    ]
    grades: tuple[Grade, ...] = ("error", "warning", "ok")
    return sorted(found, key=lambda finding: grades.index(finding.grade))


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


def _overlap(dataset: FederatedDataset) -> Finding:
    count = overlaps(dataset)
    text = f"{count} patients, lesions or duplicates stand in two splits or at two sites"
    return Finding("error" if count else "ok", text)


def _conflicts(dataset: FederatedDataset) -> list[Finding]:
    pairs = conflicts(dataset)
    if not pairs:
        return []
    ids = dataset.store.image_ids
    one, other = pairs[0]
    text = f"{len(pairs)} duplicates with contradicting labels, the first: {ids[one]}, {ids[other]}"
    return [Finding("warning", text)]


def _classes(dataset: FederatedDataset) -> Finding:
    store = dataset.store
    counts = (np.asarray(store.labels) == 1).sum(axis=0).tolist()
    listed = ", ".join(f"{name} {count}" for name, count in zip(store.classes, counts, strict=True))
    kind = "findings, several an image" if store.multi_label else "classes, one an image"
    return Finding("ok", f"{len(store.classes)} {kind}: {listed}")


def _splits(dataset: FederatedDataset) -> list[Finding]:
    if dataset.store.splits is None:
        return []
    counts = Counter(dataset.store.splits)
    listed = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    return [Finding("ok", f"splits of the data set, for data.splits=official: {listed}")]


def _bad(dataset: FederatedDataset) -> list[Finding]:
    bad = dataset.store.bad
    total = len(dataset.store.image_ids) + len(bad)
    if not bad:
        return [Finding("ok", f"all {total} images can be read")]
    name, reason = bad[0]
    text = f"{len(bad)} of {total} images can't be read, the first is {name} ({reason})"
    return [Finding("warning", text)]


def _two_levels(dataset: FederatedDataset) -> list[Finding]:
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
    return [Finding("warning", f"{text}the first is {store.image_ids[flat[0]]}")]


def _duplicates(dataset: FederatedDataset) -> list[Finding]:
    store = dataset.store
    if not len(store.duplicates):
        return [Finding("ok", "no image stands twice in the data")]
    one, other = store.duplicates[0]
    again = {int(b) for _, b in store.duplicates}  # one image may repeat several
    across = {int(b) for a, b in store.duplicates if store.groups[a] != store.groups[b]}
    text = (
        f"{len(again)} images stand twice, {len(across)} under another patient or lesion, "
        f"the first: {store.image_ids[one]}, {store.image_ids[other]}; kept on one side"
    )
    return [Finding("warning" if across else "ok", text)]


def _labels(dataset: FederatedDataset) -> list[Finding]:
    store = dataset.store
    found = []
    for name, column in zip(store.classes, np.asarray(store.labels).T, strict=True):
        for value, kind in ((1, "positive"), (0, "negative")):
            if not (column == value).any():
                found.append(Finding("warning", f"class {name} has no {kind} image"))
    unknown = ~np.any([client.known for client in dataset.clients], axis=0)
    for name, nowhere in zip(store.classes, unknown.tolist(), strict=True):
        if nowhere:
            found.append(Finding("warning", f"class {name} is labelled at no site"))
    missing = int(np.isnan(store.labels).all(axis=1).sum())
    if missing == len(store.labels):
        found.append(Finding("error", "no image has a label"))
    elif missing:
        found.append(Finding("ok", f"{missing} of {len(store.labels)} images have no label"))
    return found


def _site(dataset: FederatedDataset, client: ClientPartition) -> list[Finding]:
    text = (
        f"site {client.site}: {len(client.train)} to train on, "
        f"{int(client.labelled.sum())} of them labelled, "
        f"{len(client.validation)} to validate, {len(client.test)} to test"
    )
    found = [Finding("ok", text)]
    positives = (dataset.labels(client, "train") == 1).sum(axis=0)
    few = [
        f"{name} {count}"
        for name, count, known in zip(
            dataset.store.classes, positives.tolist(), client.known, strict=True
        )
        if known and count < FEW
    ]
    if client.validation_labelled and not client.labelled.any():
        text = f"site {client.site}: no patient or lesion is small enough for so few labels"
        found.append(Finding("warning", text))
    if client.labelled.any() and few:
        text = f"site {client.site}: fewer than {FEW} labelled positives of {', '.join(few)}"
        found.append(Finding("warning", text))
    return found
