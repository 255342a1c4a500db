"""Every partitioner: no patient at two sites, for any seed."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data import ClientPartition, Store, partition
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.data.partitioning.scanner import ScannedImages, Scanner, draw_scanner
from mediffusion_core.data.partitioning.splits import labels_to_server
from mediffusion_core.data.readers.phantom import with_finding, without_finding
from mediffusion_core.settings import DataSettings
from unit.data.partitioning.test_splits import configure, make_store

WAYS = ("natural", "uniform", "dirichlet", "quantity", "one_finding")


def clinic(seed: int = 0, patients: int = 400) -> Store:
    """Patients of one to four images at three centres; some share an image with another's."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, patients)
    patient = np.repeat(np.arange(patients), sizes)
    labels = rng.random((len(patient), 4)) < [0.5, 0.2, 0.1, 0.05]
    units = np.arange(patients)
    for one, other in rng.integers(0, patients, (12, 2)):
        units[units == units[other]] = units[one]
    return make_store(
        labels,
        [f"p{number}" for number in patient],
        [f"centre-{number % 3}" for number in patient],
        units[patient].tolist(),
    )


STORE = clinic()


def parts(clients: tuple[ClientPartition, ...]) -> list[np.ndarray]:
    return [part for client in clients for part in (client.train, client.validation, client.test)]


@pytest.mark.parametrize("way", WAYS)
def test_no_patient_and_no_duplicate_stands_in_two_places(way: str) -> None:
    """Over 200 seeds: the overlap is 0 between any two splits of any two sites."""
    for seed in range(200):
        dealt = parts(partition(STORE, configure(way), 3, seed))
        assert sorted(np.concatenate(dealt).tolist()) == list(range(len(STORE.groups)))
        patients = [{STORE.groups[row] for row in part.tolist()} for part in dealt]
        units = [set(STORE.units[part].tolist()) for part in dealt]
        for sides in (patients, units):
            assert not any(one & other for one, other in combinations(sides, 2))


@pytest.mark.parametrize("way", WAYS)
def test_the_seed_decides_and_nothing_else(way: str) -> None:
    order = np.random.default_rng(5).permutation(len(STORE.groups))
    turned = make_store(
        STORE.labels[order],
        [STORE.groups[row] for row in order],
        [STORE.centres[row] for row in order],  # type: ignore[index]
        STORE.units[order].tolist(),
    )
    one, other = (partition(store, configure(way), 3, 1) for store in (STORE, turned))
    for left, right in zip(parts(one), parts(other), strict=True):
        assert set(left.tolist()) == set(order[right].tolist())
    again = partition(STORE, configure(way), 3, 2)
    assert any(
        not np.array_equal(left, right)
        for left, right in zip(parts(one), parts(again), strict=True)
    )


def sizes(clients: tuple[ClientPartition, ...]) -> np.ndarray:
    return np.array(
        [len(client.train) + len(client.validation) + len(client.test) for client in clients]
    )


def shares(clients: tuple[ClientPartition, ...]) -> np.ndarray:
    """Prevalence of each class at each site."""
    rows = [np.concatenate([s.train, s.validation, s.test]) for s in clients]
    return np.array([STORE.labels[part].mean(axis=0) for part in rows])


def test_a_small_alpha_skews_and_a_large_one_does_not() -> None:
    def spread(way: str, alpha: float, of: object) -> float:
        seeds = range(10)
        dealt = [partition(STORE, configure(way, partition_alpha=alpha), 3, s) for s in seeds]
        return float(np.mean([np.ptp(of(clients), axis=0).max() for clients in dealt]))  # type: ignore[operator]

    assert spread("dirichlet", 0.3, shares) > 3 * spread("dirichlet", 1000, shares)
    assert spread("quantity", 0.5, sizes) > 5 * spread("quantity", 1000, sizes)
    assert spread("quantity", 0.5, shares) < 0.5 * spread("dirichlet", 0.3, shares)


def test_a_draw_that_cannot_fill_every_site_is_refused() -> None:
    with pytest.raises(UserError, match=r"partition_alpha=0.01 left a site with fewer than 10"):
        partition(STORE, configure("dirichlet", partition_alpha=0.01), 20, 0)


def test_one_finding_a_site_in_turn() -> None:
    clients = partition(STORE, configure("one_finding"), 6, 0)
    assert [np.flatnonzero(client.known).tolist() for client in clients] == [
        [0], [1], [2], [3], [0], [1],
    ]  # fmt: skip


def test_few_labelled_sites_and_many_without() -> None:
    chosen = configure("dirichlet", partition_alpha=0.8, labelled_sites=2)
    clients = partition(STORE, chosen, 10, 0)
    assert [bool(client.labelled.all()) for client in clients[:2]] == [True, True]
    assert not any(client.labelled.any() or client.validation_labelled for client in clients[2:])
    more = configure("uniform", labelled_sites=1, labelled_fraction_by_site={"site-2": 0.5})
    assert [client.labelled.mean().round(1) for client in partition(STORE, more, 3, 0)] == [
        1,
        0,
        0.5,
    ]
    with pytest.raises(UserError, match="labelled_sites=4: there are only 3 sites"):
        partition(STORE, configure("uniform", labelled_sites=4), 3, 0)


def test_only_the_server_holds_labels() -> None:
    """The server holds the labelled units of all sites once; a larger fraction holds more."""
    before: set[int] = set()
    for fraction in (0.1, 0.2, 0.4):
        by_site = {"centre-1": 0.0}
        chosen = configure("natural", labelled_fraction=fraction, labelled_fraction_by_site=by_site)
        at_sites = partition(STORE, chosen, 3, 0)
        *sites, server = labels_to_server(STORE, at_sites)
        assert [client.site for client in (*sites, server)] == [
            "centre-0", "centre-1", "centre-2", "server",
        ]  # fmt: skip
        assert not any(client.labelled.any() or client.validation_labelled for client in sites)
        assert server.labelled.all() and server.validation_labelled and server.known.all()
        labelled = {row for client in at_sites for row in client.train[client.labelled].tolist()}
        assert before < set(server.train.tolist()) == labelled
        before = labelled
        for client, alone in zip(at_sites, sites, strict=True):
            assert np.array_equal(client.test, alone.test)
        sides = [set(STORE.units[part].tolist()) for part in parts((*sites, server))]
        assert not any(one & other for one, other in combinations(sides, 2))
        assert sum(len(client.rows) for client in (*sites, server)) == len(STORE.groups)


def test_an_image_without_a_label_moves_with_its_patient() -> None:
    labels = STORE.labels.copy()
    labels[::3] = np.nan
    partly = replace(STORE, labels=labels)
    chosen = configure("uniform", labelled_fraction=0.3)
    *sites, server = labels_to_server(partly, partition(partly, chosen, 3, 0))
    assert 0 < server.labelled.sum() < len(server.train)
    sides = [set(partly.units[part].tolist()) for part in parts((*sites, server))]
    assert not any(one & other for one, other in combinations(sides, 2))


def test_labels_that_cannot_move_to_the_server_are_named() -> None:
    def moved(store: Store, **more: object) -> None:
        labels_to_server(store, partition(store, configure("natural", **more), 1, 0))

    alone = replace(STORE, centres=("bern",) * len(STORE.groups))
    with pytest.raises(UserError, match=r"leaves site bern no image .* data.labelled_fraction"):
        moved(alone)
    with pytest.raises(UserError, match="no image is labelled"):
        moved(alone, labelled_fraction=0.0)
    with pytest.raises(UserError, match="centre named 'server'"):
        moved(replace(STORE, centres=("server",) * len(STORE.groups)), labelled_fraction=0.2)
    with pytest.raises(ValueError, match="one_finding"):
        configure("one_finding", labels_at="server")


def test_one_finding_counts_the_labels_that_the_site_has() -> None:
    rng = np.random.default_rng(1)
    labels = STORE.labels.copy()
    labels[rng.random(labels.shape) < 0.6] = np.nan
    partly = replace(STORE, labels=labels)
    for client in partition(partly, configure("one_finding", labelled_fraction=0.2), 2, 0):
        usable = ~np.isnan(labels[client.train][:, client.known]).all(axis=1)
        assert not (client.labelled & ~usable).any()
        assert abs(client.labelled.sum() - 0.2 * usable.sum()) <= 5


def with_splits(splits: list[str]) -> Store:
    return replace(STORE, splits=tuple(splits))


def test_official_splits_are_kept_and_duplicates_go_to_the_test_split() -> None:
    official = ["train" if int(group[1:]) % 4 else "test" for group in STORE.groups]
    store = with_splits(official)
    moved = 0
    for client in partition(store, configure("uniform", splits="official"), 2, 0):
        assert {official[row] for row in [*client.train, *client.validation]} == {"train"}
        for row in client.test.tolist():
            unit = {official[other] for other in np.flatnonzero(STORE.units == STORE.units[row])}
            assert "test" in unit
            moved += official[row] == "train"
        assert 0.05 < len(client.validation) / len(client.train) < 0.2
    assert moved > 0


def test_a_test_split_that_was_not_published_is_dealt() -> None:
    """CheXpert's download has a training and a validation split, and its test set elsewhere."""
    published = ["train" if int(group[1:]) % 4 else "validation" for group in STORE.groups]
    for client in partition(with_splits(published), configure("uniform", splits="official"), 2, 0):
        assert {published[row] for row in [*client.train, *client.test]} == {"train"}
        held = len(client.test) / (len(client.test) + len(client.train))
        assert abs(held - DataSettings.model_fields["test_fraction"].default) < 0.02


def test_official_splits_are_asked_for_in_vain() -> None:
    with pytest.raises(UserError, match="no official splits"):
        partition(STORE, configure("uniform", splits="official"), 2, 0)


def test_a_scanner_of_no_strength_changes_nothing_and_others_differ_by_site() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    assert np.array_equal(draw_scanner(0.0, 0, "a").render(images), images)
    scanners = tuple(draw_scanner(1.0, 0, site) for site in ("a", "b"))
    assert scanners[0] != scanners[1]
    assert scanners[0] == draw_scanner(1.0, 0, "a")
    scanned = ScannedImages(images, scanners, np.array([0, 1, 0, 1, 0, 1]))
    rows = np.array([3, 0, 5])
    expected = np.concatenate(
        [scanners[n].render(images[[r]]) for n, r in ((1, 3), (0, 0), (1, 5))]
    )
    assert np.array_equal(scanned[rows], expected)
    assert scanned.shape == images.shape


def test_the_ground_truth_has_the_scanner_of_its_patient(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """Without a finding that was not there, a phantom looks as it did, at the server too."""
    overrides = [*tiny, f"data.store={tmp_path}", "data.scanner_shift=1"]
    settings = compose("config", overrides)
    at_sites = open_federated_dataset(settings)
    at_server = open_federated_dataset(compose("config", [*overrides, "data.labels_at=server"]))
    assert at_server.clients[-1].site == "server"
    for row in range(0, 180, 29):
        absent = at_sites.store.classes[int(np.argmin(at_sites.store.labels[row]))]
        name = at_sites.store.image_ids[row]
        drawn = without_finding(settings.data, settings.seed, name, absent)
        shown = at_sites.pixels[np.array([row])][0, ..., 0]
        assert np.array_equal(at_sites.as_scanned(row, drawn), shown)
        assert np.array_equal(at_server.pixels[np.array([row])][0, ..., 0], shown)
        assert not np.array_equal(drawn, shown)
        more = with_finding(settings.data, settings.seed, name, absent)
        assert not np.array_equal(more, drawn)
        if at_sites.store.labels[row].any():
            there = at_sites.store.classes[int(np.argmax(at_sites.store.labels[row]))]
            same = with_finding(settings.data, settings.seed, name, there)
            assert np.array_equal(same, drawn)


def test_a_scanner_renders_its_formula() -> None:
    images = np.full((1, 4, 4, 1), 64, np.uint8)
    made = Scanner(gamma=2.0, gain=1.5, offset=0.1).render(images)
    assert (made == round(255 * (1.5 * (64 / 255) ** 2 + 0.1))).all()
