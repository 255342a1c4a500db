"""What is wrong with a data set, and what its shards look like, before anything trains."""

from collections import Counter
from itertools import combinations

import numpy as np

from mediffusion_core.data.checks.finding import Finding, Grade
from mediffusion_core.data.dataset import SPLITS
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.data.partitioning.splits import ClientPartition

FEW = 10
"""Positives below which a class's AUC has an interval as wide as its range."""

__all__ = ["Finding", "Grade", "conflicts", "inspect", "overlaps"]


def inspect(hospitals: FederatedDataset) -> list[Finding]:
    """Everything that is looked at before training, errors first."""
    found = [
        _overlap(hospitals),
        *_conflicts(hospitals),
        _classes(hospitals),
        *_bad(hospitals),
        *hospitals.notes,
        *_splits(hospitals),
        *_duplicates(hospitals),
        *_labels(hospitals),
        *(finding for shard in hospitals.shards for finding in _site(hospitals, shard)),
    ]
    grades: tuple[Grade, ...] = ("error", "warning", "ok")
    return sorted(found, key=lambda finding: grades.index(finding.grade))


def overlaps(hospitals: FederatedDataset) -> int:
    """Patients, lesions or duplicates that stand in two splits or at two sites; 0 is right."""
    store = hospitals.store
    sides = [getattr(shard, split) for shard in hospitals.shards for split in SPLITS]
    patients = [{store.groups[row] for row in rows.tolist()} for rows in sides]
    units = [set(store.units[rows].tolist()) for rows in sides]
    return sum(
        len(one & other) for names in (patients, units) for one, other in combinations(names, 2)
    )


def conflicts(hospitals: FederatedDataset) -> list[tuple[int, int]]:
    """Pairs of duplicates whose known labels contradict each other."""
    labels = hospitals.store.labels
    return [
        (int(one), int(other))
        for one, other in hospitals.store.duplicates
        if bool((np.abs(labels[one] - labels[other]) > 0).any())
    ]


def _overlap(hospitals: FederatedDataset) -> Finding:
    count = overlaps(hospitals)
    text = f"{count} patients, lesions or duplicates stand in two splits or at two sites"
    return Finding("error" if count else "ok", text)


def _conflicts(hospitals: FederatedDataset) -> list[Finding]:
    pairs = conflicts(hospitals)
    if not pairs:
        return []
    ids = hospitals.store.image_ids
    one, other = pairs[0]
    text = f"{len(pairs)} duplicates with contradicting labels, the first: {ids[one]}, {ids[other]}"
    return [Finding("warning", text)]


def _classes(hospitals: FederatedDataset) -> Finding:
    store = hospitals.store
    counts = (np.asarray(store.labels) == 1).sum(axis=0).tolist()
    listed = ", ".join(f"{name} {count}" for name, count in zip(store.classes, counts, strict=True))
    kind = "findings, several an image" if store.multi_label else "classes, one an image"
    return Finding("ok", f"{len(store.classes)} {kind}: {listed}")


def _splits(hospitals: FederatedDataset) -> list[Finding]:
    if hospitals.store.splits is None:
        return []
    counts = Counter(hospitals.store.splits)
    listed = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    return [Finding("ok", f"splits of the data set, for data.splits=official: {listed}")]


def _bad(hospitals: FederatedDataset) -> list[Finding]:
    bad = hospitals.store.bad
    total = len(hospitals.store.image_ids) + len(bad)
    if not bad:
        return [Finding("ok", f"all {total} images can be read")]
    name, reason = bad[0]
    text = f"{len(bad)} of {total} images can't be read, the first is {name} ({reason})"
    return [Finding("warning", text)]


def _duplicates(hospitals: FederatedDataset) -> list[Finding]:
    store = hospitals.store
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


def _labels(hospitals: FederatedDataset) -> list[Finding]:
    store = hospitals.store
    found = []
    for name, column in zip(store.classes, np.asarray(store.labels).T, strict=True):
        for value, kind in ((1, "positive"), (0, "negative")):
            if not (column == value).any():
                found.append(Finding("warning", f"class {name} has no {kind} image"))
    unknown = ~np.any([shard.known for shard in hospitals.shards], axis=0)
    for name, nowhere in zip(store.classes, unknown.tolist(), strict=True):
        if nowhere:
            found.append(Finding("warning", f"class {name} is labelled at no site"))
    missing = int(np.isnan(store.labels).all(axis=1).sum())
    if missing == len(store.labels):
        found.append(Finding("error", "no image has a label"))
    elif missing:
        found.append(Finding("ok", f"{missing} of {len(store.labels)} images have no label"))
    return found


def _site(hospitals: FederatedDataset, shard: ClientPartition) -> list[Finding]:
    text = (
        f"site {shard.site}: {len(shard.train)} to train on, {int(shard.labelled.sum())} of them "
        f"labelled, {len(shard.validation)} to validate, {len(shard.test)} to test"
    )
    found = [Finding("ok", text)]
    positives = (hospitals.labels(shard, "train") == 1).sum(axis=0)
    few = [
        f"{name} {count}"
        for name, count, known in zip(
            hospitals.store.classes, positives.tolist(), shard.known, strict=True
        )
        if known and count < FEW
    ]
    if shard.validation_labelled and not shard.labelled.any():
        text = f"site {shard.site}: no patient or lesion is small enough for so few labels"
        found.append(Finding("warning", text))
    if shard.labelled.any() and few:
        text = f"site {shard.site}: fewer than {FEW} labelled positives of {', '.join(few)}"
        found.append(Finding("warning", text))
    return found
